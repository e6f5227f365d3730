//! Attention over keys and values with one site: a method may put trained keys and values in front of each example's.

use retune_tensor::ops::{self, AttentionShape};
use retune_tensor::{Segments, Tape, Tensor, Var};

use crate::nn::{Caches, KvCache, Rows, Shared, Slots};

/// What a method puts into [`Attention::prefix`].
pub trait AttentionPrefix: Send + Sync {
    /// Number of keys.
    fn rows(&self) -> usize;

    /// Keys and values, each `[n, kv_heads * head_dim]`. The keys are not rotated.
    fn keys_values(&self, tape: &Tape, at: &Attention) -> (Var, Var);

    /// Real rows stand at positions behind the prefix, as with PEFT; else they count from 0 all the same.
    fn takes_positions(&self) -> bool {
        true
    }
}

/// The heads of one layer; the projections belong to the model.
pub struct Attention {
    /// The Hugging Face module path, `model.layers.0.self_attn`.
    pub path: String,
    /// The number of the layer.
    pub layer: usize,
    pub shape: AttentionShape,
    pub prefix: Slots<dyn AttentionPrefix>,
}

impl Attention {
    /// Attention without a method on it.
    pub fn new(path: impl Into<String>, layer: usize, shape: AttentionShape) -> Attention {
        Attention { path: path.into(), layer, shape, prefix: Slots::default() }
    }

    /// Whether a parameter's name begins as this one's block's do: `model.layers.3.`.
    pub fn is_in_block(&self, parameter: &str) -> bool {
        let number = self.layer.to_string();
        let end = self.path.split('.').position(|part| part == number).map_or(0, |at| at + 1);
        let mut parts = parameter.split('.');
        end > 0
            && self.path.split('.').take(end).all(|part| parts.next() == Some(part))
            && parts.next().is_some()
    }

    /// Number of keys in front of an example's that goes through this slot.
    pub fn prefix_rows(&self, slot: Option<usize>) -> usize {
        self.prefix.get(slot).map_or(0, |prefix| prefix.rows())
    }

    /// By how many positions an example's own rows move that goes through this slot.
    pub fn prefix_positions(&self, slot: Option<usize>) -> usize {
        self.prefix.get(slot).map_or(0, |prefix| if prefix.takes_positions() { prefix.rows() } else { 0 })
    }

    /// Queries `[T, heads * head_dim]`, keys and values `[T, kv_heads * head_dim]` of the pass's rows to
    /// `[T, heads * head_dim]`; with a cache, over the keys and values of the rows before too.
    pub fn forward(
        &self,
        tape: &Tape,
        shared: &Shared,
        [q, k, v]: [&Var; 3],
        cache: Option<&mut Caches>,
    ) -> Var {
        let segments = &shared.rows.segments;
        if let Some(caches) = cache {
            return Var::constant(self.cached(segments, [q, k, v].map(Var::value), caches));
        }
        if self.prefix.is_empty() {
            return ops::attention(tape, self.shape, q, segments, k, v, segments);
        }
        let (k, v, keys) = self.with_prefix(tape, &shared.rows, k, v);
        ops::attention(tape, self.shape, q, segments, &k, &v, &keys)
    }

    /// Each text's new rows over the keys and values of all its rows.
    fn cached(&self, segments: &Segments, [q, k, v]: [&Tensor; 3], caches: &mut Caches) -> Tensor {
        let mut out = Tensor::scratch(q.rows(), q.cols());
        for (rows, cache) in segments.ranges().zip(caches.texts()) {
            let part = |x: &Tensor| {
                let cols = x.cols();
                Tensor::from_slice(rows.len(), cols, &x.data()[rows.start * cols..rows.end * cols])
            };
            let [own, all] = [rows.len(), cache.len + rows.len()].map(|n| Segments::from_lengths(&[n]));
            let (keys, values) = cache.append(self.layer, &part(k), &part(v));
            let (o, _) = ops::attention_values(&self.shape, &part(q), &own, keys, values, &all);
            let cols = o.cols();
            out.data_mut()[rows.start * cols..rows.end * cols].copy_from_slice(o.data());
        }
        out
    }

    /// Keys and values with each example's prefix in front.
    fn with_prefix(&self, tape: &Tape, rows: &Rows, k: &Var, v: &Var) -> (Var, Var, Segments) {
        let slots: Vec<Option<usize>> = (0..rows.segments.len()).map(|e| rows.active.of(e)).collect();
        let fronts =
            fronts(&slots, |slot| self.prefix.get(Some(slot)).map(|prefix| prefix.keys_values(tape, self)));
        let (keys, values): (Vec<_>, Vec<_>) =
            fronts.iter().map(|f| f.as_ref().map(|(k, v)| (k, v)).unzip()).unzip();
        let (k, segments) = ops::concat_segments_each(tape, &keys, k, &rows.segments);
        let (v, _) = ops::concat_segments_each(tape, &values, v, &rows.segments);
        (k, v, segments)
    }

    /// Puts the prefix of a slot into an empty cache.
    pub fn start_cache(&self, tape: &Tape, slot: Option<usize>, cache: &mut KvCache) {
        if let Some(prefix) = self.prefix.get(slot) {
            let (k, v) = prefix.keys_values(tape, self);
            cache.append(self.layer, k.value(), v.value());
        }
    }
}

/// Makes each slot's front once and hands it to every example of that slot.
pub(crate) fn fronts<F: Clone>(slots: &[Option<usize>], make: impl Fn(usize) -> Option<F>) -> Vec<Option<F>> {
    let mut made = std::collections::BTreeMap::new();
    let mut front = |slot: usize| made.entry(slot).or_insert_with(|| make(slot)).clone();
    slots.iter().map(|slot| slot.and_then(&mut front)).collect()
}
