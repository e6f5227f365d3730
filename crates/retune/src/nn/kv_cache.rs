//! Keys and values of texts, layer by layer, for generation.

use retune_tensor::Tensor;

use crate::nn::Active;

/// Keys and values of one text, layer by layer.
pub struct KvCache {
    /// `(keys, values)`, each `[capacity, kv_heads * head_dim]` of which `len` rows are filled.
    pub layers: Vec<(Tensor, Tensor)>,
    pub len: usize,
    /// Rows of a prefix or soft prompt among them.
    pub virtual_rows: usize,
    /// Rows of a prefix that take no position.
    pub unplaced: usize,
    pub capacity: usize,
    /// The adapter that the text goes through.
    pub active: Active,
}

impl KvCache {
    /// Room for `capacity` rows in each layer.
    pub fn new(layers: usize, capacity: usize, kv_cols: usize, active: Active) -> KvCache {
        let one = || Tensor::zeros(capacity, kv_cols);
        let layers = (0..layers).map(|_| (one(), one())).collect();
        KvCache { layers, len: 0, virtual_rows: 0, unplaced: 0, capacity, active }
    }

    /// Appends rows to one layer's keys and values; [`KvCache::len`] moves when all layers are done.
    pub fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> (&[f32], &[f32]) {
        let at = self.len * k.cols();
        let (keys, values) = &mut self.layers[layer];
        keys.data_mut()[at..at + k.len()].copy_from_slice(k.data());
        values.data_mut()[at..at + v.len()].copy_from_slice(v.data());
        (keys.data(), values.data())
    }
}

/// The caches of the texts of one pass, in their order.
pub struct Caches<'a> {
    texts: Vec<&'a mut KvCache>,
}

impl<'a> Caches<'a> {
    /// All of them are empty, or none.
    pub fn new(texts: Vec<&'a mut KvCache>) -> Caches<'a> {
        debug_assert!(texts.iter().all(|cache| (cache.len == 0) == texts.iter().all(|cache| cache.len == 0)));
        Caches { texts }
    }

    pub fn texts(&mut self) -> impl Iterator<Item = &mut KvCache> {
        self.texts.iter_mut().map(|cache| &mut **cache)
    }

    /// Which adapters the texts go through.
    pub fn active(&self) -> Active {
        match self.texts.as_slice() {
            [one] => one.active.clone(),
            many => {
                let slots: Vec<Option<usize>> = many.iter().map(|cache| cache.active.of(0)).collect();
                match slots.iter().all(|slot| *slot == slots[0]) {
                    true => slots.first().copied().flatten().map_or(Active::Base, Active::Slot),
                    false => Active::PerExample(slots.into()),
                }
            }
        }
    }

    /// The position of each text's next row; `None` before the first.
    pub fn positions(&self) -> Option<Vec<usize>> {
        let filled = self.texts.iter().any(|cache| cache.len > 0);
        filled.then(|| self.texts.iter().map(|cache| cache.len - cache.unplaced).collect())
    }
}
