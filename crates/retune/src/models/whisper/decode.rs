//! Writing text step by step: keys and values of the text in caches, those of the sound computed once.

use retune_tensor::{Params, Segments, Tape, Tensor, Var};

use super::Whisper;
use crate::nn::{Active, Caches, Hidden, KvCache, Pass};

/// What the decoder looks at of one window: keys and values `[rows, C]`, layer by layer.
pub struct Heard {
    layers: Vec<[Tensor; 2]>,
    active: Active,
}

/// A text that is being written.
pub struct Spoken {
    cache: KvCache,
}

impl Spoken {
    /// Another text that begins as this one.
    pub fn fork(&self) -> Spoken {
        let KvCache { layers, len, virtual_rows, unplaced, capacity, active } = &self.cache;
        let copy = |x: &Tensor| {
            let mut y = Tensor::zeros(x.rows(), x.cols());
            let filled = *len * x.cols();
            y.data_mut()[..filled].copy_from_slice(&x.data()[..filled]);
            y
        };
        let layers = layers.iter().map(|(k, v)| (copy(k), copy(v))).collect();
        let (len, virtual_rows, unplaced, capacity) = (*len, *virtual_rows, *unplaced, *capacity);
        Spoken { cache: KvCache { layers, len, virtual_rows, unplaced, capacity, active: active.clone() } }
    }
}

impl Whisper {
    /// Hears the features `[frames, bands]` of one window.
    pub fn hear(&self, params: &Params, features: Tensor, active: Active) -> Heard {
        let tape = Tape::inference(params);
        let pass = Pass { active, ..Pass::default() };
        let clips = Segments::from_lengths(&[features.rows()]);
        let sound = self.encode(&tape, &Var::constant(features), &clips, &pass);
        self.heard(&tape, &sound)
    }

    /// Bytes that writing one text about a window of so many frames (`None`: a whole one) holds: keys and values of the sound, of the text, and of
    /// the copy of its prompt.
    pub fn transcript_bytes(&self, frames: Option<usize>) -> u64 {
        let sound = frames.unwrap_or(self.config.frames()) / 2;
        let rows = sound + 2 * self.config.max_target_positions;
        let values = 2 * self.decoder.blocks.len() * rows * self.config.d_model + 4 * self.config.vocab_size;
        4 * values as u64
    }

    /// What the decoder looks at of a window that the encoder went over.
    pub fn heard(&self, tape: &Tape, sound: &Hidden) -> Heard {
        let keys_values =
            |block: &super::DecoderBlock| block.cross.keys_values(tape, sound).map(|x| x.value().clone());
        let layers = self.decoder.blocks.iter().map(keys_values).collect();
        Heard { layers, active: sound.rows.active.clone() }
    }

    /// A text of up to `tokens` tokens about what was heard, nothing of which is written yet.
    pub fn begin(&self, params: &Params, heard: &Heard, tokens: usize) -> Spoken {
        let slot = heard.active.of(0);
        let prefix = self.prefix_rows(slot);
        let capacity = tokens.min(self.room(slot)) + prefix;
        let layers = self.decoder.blocks.len();
        let mut cache = KvCache::new(layers, capacity, self.config.d_model, heard.active.clone());
        let tape = Tape::inference(params);
        for block in &self.decoder.blocks {
            block.attention.heads.start_cache(&tape, slot, &mut cache);
        }
        cache.len = prefix;
        cache.virtual_rows = prefix;
        cache.unplaced = prefix - self.prefix_positions(slot);
        Spoken { cache }
    }

    /// Logits `[texts, V]` behind the last of the next tokens of some texts, as many of each: `ids` are `[texts, n]`. All texts
    /// hear the same.
    ///
    /// # Panics
    /// If an id is outside the vocabulary, or a text longer than it was begun for.
    pub fn step(&self, params: &Params, heard: &Heard, texts: &mut [&mut Spoken], ids: &[u32]) -> Tensor {
        let count = ids.len() / texts.len().max(1);
        let lengths = vec![count; texts.len()];
        let segments = Segments::from_lengths(&lengths);
        let tape = Tape::inference(params);
        let before: Vec<usize> = texts.iter().map(|text| text.cache.len - text.cache.unplaced).collect();
        let pass = Pass { active: heard.active.clone(), ..Pass::default() };
        let mut caches = Caches::new(texts.iter_mut().map(|text| &mut text.cache).collect());
        let (mut x, rows) = self.embed(&tape, ids, &segments, Some(&before), &pass);
        let shared = crate::nn::Shared { rows: rows.clone(), rope: None };
        for (block, [k, v]) in self.decoder.blocks.iter().zip(&heard.layers) {
            x = block.cached(&tape, &shared, &x, [k, v], &mut caches);
        }
        caches.texts().for_each(|cache| cache.len += count);
        let last: Vec<usize> = segments.ranges().map(|r| r.end.max(1) - 1).collect();
        let x = retune_tensor::ops::select_rows(&tape, &self.decoder.norm.forward(&tape, &x), &last);
        self.logits_of(&tape, &rows.pooled(), &x).value().clone()
    }
}
