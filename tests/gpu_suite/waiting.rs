//! Futures of calls yield while the device works, and may be dropped.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use libtest_mimic::Failed;
use local_attention::gpu::{DeviceError, Gpu, GpuError, GpuOptions, RequestOptions, Tile};
use local_attention::{
    AttentionShape, Call, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig, Problem,
};

use super::bad_input::small_call;
use super::{bits, fail};

/// Wakes the thread that waits, and counts the wakings of other threads.
struct Count(Thread, AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        if std::thread::current().id() != self.0.id() {
            self.1.fetch_add(1, Ordering::SeqCst);
        }
        self.0.unpark();
    }
}

/// What takes a while.
fn long_call() -> (Problem, HostInputs<'static, f32>) {
    let data: Vec<f32> = (0..4 * 512 * 64).map(|i| (i % 97) as f32 / 97.0).collect();
    let x = HostTensor::new(data, [4, 512, 64]).unwrap();
    let inputs = HostInputs::new(x.clone(), x.clone(), x);
    let attention = LocalAttention::new(LocalAttentionConfig::new(128)).unwrap();
    let problem = attention.problem(&AttentionShape::from_inputs(&inputs).unwrap()).unwrap();
    (problem, inputs)
}

/// A call of many parts is polled by hand: it is pending, is woken by another thread, and gives what the
/// blocking one gives. One that is dropped half-way does no harm.
pub fn yields(gpu: &Gpu) -> Result<(), Failed> {
    let (problem, inputs) = long_call();
    let call = Call::default();
    let mut options = GpuOptions::default();
    options.max_chunk_flops = 1e7;
    let gpu = &gpu.with_options(options);
    let alone = gpu.forward_blocking(&problem, &inputs, &call).map_err(fail)?;
    for drops in [true, false] {
        let count = Arc::new(Count(std::thread::current(), AtomicUsize::new(0)));
        let waker = Waker::from(count.clone());
        let mut context = Context::from_waker(&waker);
        let mut future = pin!(gpu.forward(&problem, &inputs, &call));
        let mut pending = 0;
        let result = loop {
            match future.as_mut().poll(&mut context) {
                Poll::Ready(result) => break Some(result),
                Poll::Pending if drops => break None,
                Poll::Pending => {
                    pending += 1;
                    std::thread::park();
                }
            }
        };
        match result {
            None => {}
            Some(_) if drops => return Err("ready at once".into()),
            Some(result) => {
                assert_eq!(bits(&result.map_err(fail)?.out), bits(&alone.out));
                assert!(pending > 0 && count.1.load(Ordering::SeqCst) > 0, "never pending");
            }
        }
    }
    Ok(())
}

/// A device that is lost while a call waits for it is a typed error, and the next call on another one works.
pub fn lost(gpu: &Gpu) -> Result<(), Failed> {
    let (problem, inputs) = long_call();
    let call = Call::default();
    for at in [1, 3] {
        let mut request = RequestOptions::adapter(gpu.caps().info.name.clone());
        request.options.max_chunk_flops = 1e7;
        // It compiles fastest.
        request.options.tile = Some(Tile::Small);
        let own = Gpu::request_blocking(&request).map_err(fail)?;
        let waker = Waker::from(Arc::new(Count(std::thread::current(), AtomicUsize::new(0))));
        let mut context = Context::from_waker(&waker);
        let mut future = pin!(own.forward(&problem, &inputs, &call));
        let mut pending = 0;
        let result = loop {
            match future.as_mut().poll(&mut context) {
                Poll::Ready(result) => break result,
                Poll::Pending => {
                    pending += 1;
                    if pending == at {
                        own.device().destroy();
                    }
                    std::thread::park();
                }
            }
        };
        match result {
            Err(GpuError::Device(DeviceError::Lost { .. })) if pending >= at => {}
            other => return Err(format!("{other:?}, pending {pending} times").into()),
        }
    }
    small_call(gpu).map_err(fail)
}
