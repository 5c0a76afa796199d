//! `HostTensor` reads what `ndarray` views hold, borrowed where it can.

use local_attention::HostTensor;
use ndarray::{Array, ArrayView, Axis, Dimension, s};

/// Whether the tensor of a view borrows its elements, which it must hold either way.
fn borrowed(view: ArrayView<'_, i32, impl Dimension>) -> bool {
    let (shape, elements) = (view.shape().to_vec(), view.iter().copied().collect::<Vec<_>>());
    let tensor = HostTensor::from(view);
    assert_eq!(tensor.shape(), shape);
    assert!(tensor.iter().eq(elements));
    tensor.borrows()
}

#[test]
fn views_of_ndarray() {
    let a = Array::from_iter(0..24).into_shape_with_order((2, 3, 4)).unwrap();
    assert!(borrowed(a.view()));
    assert!(borrowed(a.view().permuted_axes([2, 0, 1])), "a transpose needs no copy");
    assert!(borrowed(a.index_axis(Axis(0), 1)));
    // So does what repeats elements, however often.
    let one = a.slice(s![..1, .., ..]);
    assert!(borrowed(one.broadcast((5, 3, 4)).unwrap()));
    assert!(borrowed(one.permuted_axes([2, 1, 0]).broadcast((4, 3, 7)).unwrap()));
    let huge = HostTensor::from(one.broadcast((1 << 50, 3, 4)).unwrap());
    assert!(huge.borrows() && huge.shape() == [1 << 50, 3, 4]);
    // Elements apart, backwards or absent are copied.
    assert!(!borrowed(a.slice(s![.., ..;2, ..])));
    assert!(!borrowed(a.slice(s![.., ..;-1, ..])));
    assert!(HostTensor::from(a.slice(s![.., 3.., ..])).is_empty());
    assert!(borrowed(a.view().into_shape_with_order(24).unwrap()));
}
