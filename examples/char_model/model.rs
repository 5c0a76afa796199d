//! The model: an embedding, layers of local attention and a two-layer perceptron, each after a normalisation
//! and added to what went in, and a projection to the next character. Gradients by hand, those of attention from this
//! crate.

use local_attention::{
    AttentionShape, Forward, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig, Problem,
};
use ndarray::{Array2, s};

use super::engine::Engine;
use super::layers::{Param, Random, cross_entropy, normalise, normalise_back, rows};

/// Characters of a sequence; a query sees its window of 32 and the one before.
pub const SEQ: usize = 256;
const WINDOW: i64 = 32;
const HEADS: usize = 4;
const HEAD_DIM: usize = 16;
const WIDTH: usize = HEADS * HEAD_DIM;
const LAYERS: usize = 2;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Sequences of characters, one after the other, and what comes after each.
pub struct Batch {
    pub input: Vec<usize>,
    pub target: Vec<usize>,
}

impl Batch {
    pub fn random(text: &[usize], sequences: usize, random: &mut Random) -> Self {
        let starts = (0..sequences).map(|_| random.below(text.len() - SEQ));
        Self::at(text, starts)
    }

    /// The whole text but for its end.
    pub fn all(text: &[usize], sequences: usize) -> Vec<Self> {
        let starts: Vec<_> = (0..(text.len() - 1) / SEQ).map(|i| i * SEQ).collect();
        starts
            .chunks_exact(sequences)
            .map(|starts| Self::at(text, starts.iter().copied()))
            .collect()
    }

    fn at(text: &[usize], starts: impl Iterator<Item = usize>) -> Self {
        let mut batch = Self { input: Vec::new(), target: Vec::new() };
        for start in starts {
            batch.input.extend(&text[start..start + SEQ]);
            batch.target.extend(&text[start + 1..start + SEQ + 1]);
        }
        batch
    }
}

struct Layer {
    qkv: Param,
    out: Param,
    up: Param,
    down: Param,
}

/// What a layer remembers for its backward pass.
struct Saved {
    normal: (Array2<f32>, Vec<f32>),
    qkv: Array2<f32>,
    attention: Forward<f32>,
    mixed: Array2<f32>,
    normal2: (Array2<f32>, Vec<f32>),
    hidden: Array2<f32>,
}

pub struct Model {
    engine: Engine,
    attention: LocalAttention,
    embedding: Param,
    layers: Vec<Layer>,
    logits: Param,
    step: i32,
}

impl Model {
    pub fn new(letters: usize, engine: Engine) -> Result<Self> {
        let config = LocalAttentionConfig::new(WINDOW).causal(true).dim(HEAD_DIM as i64);
        let random = &mut Random::new(7);
        let layers = (0..LAYERS).map(|_| Layer {
            qkv: Param::new(WIDTH, 3 * WIDTH, random),
            out: Param::new(WIDTH, WIDTH, random),
            up: Param::new(WIDTH, 4 * WIDTH, random),
            down: Param::new(4 * WIDTH, WIDTH, random),
        });
        let layers = layers.collect();
        Ok(Self {
            engine,
            attention: LocalAttention::new(config)?,
            embedding: Param::new(letters, WIDTH, random),
            layers,
            logits: Param::new(WIDTH, letters, random),
            step: 0,
        })
    }

    /// `[sequences, heads, SEQ, HEAD_DIM]`, and `lse` for the backward pass.
    fn problem(&self, characters: usize) -> Problem {
        let shape = AttentionShape::new([characters / SEQ, HEADS], SEQ, HEAD_DIM).with_lse();
        self.attention.problem(&shape).expect("sequences are whole windows")
    }

    /// A third of a projection to q, k and v, or all of one without, by heads: a view, no transpose.
    fn heads(x: &Array2<f32>, third: usize) -> HostTensor<'_, f32> {
        let (characters, width) = x.dim();
        let shape = [characters / SEQ, HEADS, SEQ, HEAD_DIM];
        let strides = [SEQ * width, HEAD_DIM, width, 1].map(|s| s as isize);
        let data = x.as_slice().expect("row-major");
        HostTensor::strided(data, third * WIDTH, shape, strides).expect("inside its rows")
    }

    /// `[sequences, heads, SEQ, HEAD_DIM]` into a third of rows of characters.
    fn gather(heads: &[f32], third: usize, to: &mut Array2<f32>) {
        for (i, from) in heads.chunks_exact(HEAD_DIM).enumerate() {
            let (t, head, sequence) = (i % SEQ, i / SEQ % HEADS, i / SEQ / HEADS);
            let at = third * WIDTH + head * HEAD_DIM;
            let mut row = to.slice_mut(s![sequence * SEQ + t, at..at + HEAD_DIM]);
            row.iter_mut().zip(from).for_each(|(to, x)| *to = *x);
        }
    }

    fn inputs(qkv: &Array2<f32>) -> HostInputs<'_, f32> {
        HostInputs::new(Self::heads(qkv, 0), Self::heads(qkv, 1), Self::heads(qkv, 2))
    }

    fn forward(&self, input: &[usize]) -> Result<(Array2<f32>, Vec<Saved>)> {
        let problem = self.problem(input.len());
        let mut x = rows(self.embedding.value.view(), input);
        let mut all = Vec::new();
        for layer in &self.layers {
            let normal = normalise(&x);
            let qkv = normal.0.dot(&layer.qkv.value);
            let attention = self.engine.forward(&problem, &Self::inputs(&qkv))?;
            let mut mixed = Array2::zeros(x.dim());
            Self::gather(&attention.out, 0, &mut mixed);
            x += &mixed.dot(&layer.out.value);
            let normal2 = normalise(&x);
            let hidden = normal2.0.dot(&layer.up.value).mapv(|x| x.max(0.0));
            x += &hidden.dot(&layer.down.value);
            all.push(Saved { normal, qkv, attention, mixed, normal2, hidden });
        }
        Ok((x, all))
    }

    /// The loss of a batch.
    pub fn loss(&self, batch: &Batch) -> Result<f32> {
        let (x, _) = self.forward(&batch.input)?;
        let mut logits = normalise(&x).0.dot(&self.logits.value);
        Ok(cross_entropy(&mut logits, &batch.target))
    }

    /// One step of Adam on a batch; its loss before.
    pub fn train(&mut self, batch: &Batch, rate: f32) -> Result<f32> {
        let (x, saved) = self.forward(&batch.input)?;
        let (normal, sizes) = normalise(&x);
        let mut probabilities = normal.dot(&self.logits.value);
        let loss = cross_entropy(&mut probabilities, &batch.target);
        // The gradient by the logits: probabilities less 1 at the target, over all characters.
        for (i, &target) in batch.target.iter().enumerate() {
            probabilities[[i, target]] -= 1.0;
        }
        probabilities /= batch.target.len() as f32;
        let mut dx = normalise_back(&normal, &sizes, self.logits.back(&normal, &probabilities));
        let problem = self.problem(batch.input.len());
        for (layer, saved) in self.layers.iter_mut().zip(saved).rev() {
            let mut dhidden = layer.down.back(&saved.hidden, &dx);
            dhidden.zip_mut_with(&saved.hidden, |g, &h| *g *= f32::from(u8::from(h > 0.0)));
            let (normal, sizes) = &saved.normal2;
            dx += &normalise_back(normal, sizes, layer.up.back(normal, &dhidden));

            let dmixed = layer.out.back(&saved.mixed, &dx);
            let (inputs, dout) = (Self::inputs(&saved.qkv), Self::heads(&dmixed, 0));
            let gradients = self.engine.backward(&problem, &inputs, &saved.attention, dout)?;
            let mut dqkv = Array2::zeros(saved.qkv.dim());
            for (third, g) in [&gradients.dq, &gradients.dk, &gradients.dv].into_iter().enumerate()
            {
                Self::gather(&g.data, third, &mut dqkv);
            }
            let (normal, sizes) = &saved.normal;
            dx += &normalise_back(normal, sizes, layer.qkv.back(normal, &dqkv));
        }
        for (&character, dx) in batch.input.iter().zip(dx.rows()) {
            let mut row = self.embedding.gradient.row_mut(character);
            row += &dx;
        }
        self.step += 1;
        let layers = self.layers.iter_mut();
        let layers = layers.flat_map(|l| [&mut l.qkv, &mut l.out, &mut l.up, &mut l.down]);
        for param in layers.chain([&mut self.embedding, &mut self.logits]) {
            param.update(rate, self.step);
        }
        Ok(loss)
    }

    /// Characters that follow some, drawn from what the model makes likely.
    pub fn sample(&self, start: &[usize], count: usize, random: &mut Random) -> Result<Vec<usize>> {
        let mut text = start.to_vec();
        for _ in 0..count {
            let (x, _) = self.forward(&text[text.len() - SEQ..])?;
            let mut logits = normalise(&x).0.dot(&self.logits.value);
            cross_entropy(&mut logits, &vec![0; SEQ]);
            let mut left = random.unit();
            let likely = logits.row(SEQ - 1);
            let next = likely.iter().position(|p| {
                left -= p;
                left < 0.0
            });
            text.push(next.unwrap_or(0));
        }
        Ok(text.split_off(start.len()))
    }
}
