//! Whisper (Radford et al., 2022): a window of sound, 30 s as 3000 log-mel frames, becomes text.
//!
//! Encoder: `x = gelu(conv2(gelu(conv1(frames)))) + sinusoids`, half as many rows as frames; a block is `x += attention(norm(x))`,
//! `x += fc2(gelu(fc1(norm(x))))`. Decoder: `y = token + position`; a block is the same with causal attention and, between the two halves,
//! `y += attention(norm(y) over x)`. Blocks are counted through: those of the encoder first.

mod config;
mod ctranslate2;
mod decode;
mod load;

use std::sync::Arc;

use retune_tensor::ops::{self, Activation, AttentionShape};
use retune_tensor::{Grid, ParamId, Params, Segments, Tape, Tensor, Var};

pub use config::WhisperConfig;
pub use ctranslate2::SpeechFolder;
pub use decode::{Heard, Spoken};

use crate::error::{Error, Result};
use crate::models::{Network, Reads, Spec};
use crate::nn::{
    Attention, Caches, Embedding, Head, Hidden, LayerNorm, Linear, Meeting, Pass, Rows, Shared, Site,
    SubLayer,
};

pub const SPEC: Spec = Spec {
    model_types: &["whisper"],
    name: "whisper",
    summary: "speech to text: Whisper tiny to large, also from CTranslate2's model.bin",
    reads: Reads::Sound,
    detects: false,
    load: load::load,
    fresh: load::fresh,
};

struct SelfAttention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    heads: Attention,
    end: SubLayer,
}

/// The decoder's look at the encoder's rows.
struct CrossAttention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    shape: AttentionShape,
}

struct Mlp {
    fc1: Linear,
    activation: Activation,
    fc2: Linear,
    end: SubLayer,
}

struct EncoderBlock {
    norm_1: LayerNorm,
    attention: SelfAttention,
    norm_2: LayerNorm,
    mlp: Mlp,
}

struct DecoderBlock {
    norm_1: LayerNorm,
    attention: SelfAttention,
    norm_cross: LayerNorm,
    cross: CrossAttention,
    norm_2: LayerNorm,
    mlp: Mlp,
}

struct Encoder {
    conv1: Linear,
    conv2: Linear,
    activation: Activation,
    positions: ParamId,
    blocks: Vec<EncoderBlock>,
    norm: LayerNorm,
}

struct Decoder {
    tokens: Embedding,
    positions: ParamId,
    blocks: Vec<DecoderBlock>,
    norm: LayerNorm,
}

/// The network; its parameters lie in the model's `Params`.
pub struct Whisper {
    config: WhisperConfig,
    encoder: Encoder,
    decoder: Decoder,
    head: Head,
}

impl SelfAttention {
    /// Its output for the normed rows `x`.
    fn forward(&self, tape: &Tape, shared: &Shared, x: &Var, cache: Option<&mut Caches>) -> Var {
        let rows = &shared.rows;
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|linear| linear.forward(tape, rows, x));
        let o = self.heads.forward(tape, shared, [&q, &k, &v], cache);
        self.out.forward(tape, rows, &o)
    }

    fn linears(&self) -> [&Linear; 4] {
        [&self.q, &self.k, &self.v, &self.out]
    }

    fn visit_sites(&mut self, prefixed: bool, visit: &mut dyn FnMut(Site<'_>)) {
        for linear in [&mut self.q, &mut self.k, &mut self.v, &mut self.out] {
            visit(Site::Linear(linear));
        }
        if prefixed {
            visit(Site::Attention(&mut self.heads));
        }
        visit(Site::SubLayer(&mut self.end));
    }
}

impl CrossAttention {
    /// Keys and values of the encoder's rows.
    fn keys_values(&self, tape: &Tape, sound: &Hidden) -> [Var; 2] {
        [&self.k, &self.v].map(|linear| linear.forward(tape, &sound.rows, &sound.x))
    }

    /// Its output for the normed rows `x`, over the rows of each example's sound.
    fn forward(&self, tape: &Tape, rows: &Rows, x: &Var, sound: &Hidden) -> Var {
        let q = self.q.forward(tape, rows, x);
        let [k, v] = self.keys_values(tape, sound);
        let o = ops::attention(tape, self.shape, &q, &rows.segments, &k, &v, &sound.rows.segments);
        self.out.forward(tape, rows, &o)
    }

    /// The same with keys and values `[S, C]` that are there already, of one sound for all rows.
    fn over(&self, tape: &Tape, rows: &Rows, x: &Var, [k, v]: [&Tensor; 2]) -> Var {
        let q = self.q.forward(tape, rows, x);
        let [own, all] = [x.rows(), k.rows()].map(|n| Segments::from_lengths(&[n]));
        let (o, _) = ops::attention_values(&self.shape, q.value(), &own, k.data(), v.data(), &all);
        self.out.forward(tape, rows, &Var::constant(o))
    }

    fn linears(&self) -> [&Linear; 4] {
        [&self.q, &self.k, &self.v, &self.out]
    }
}

impl Mlp {
    fn forward(&self, tape: &Tape, rows: &Rows, x: &Var) -> Var {
        let up = self.fc1.forward(tape, rows, x);
        self.fc2.forward(tape, rows, &ops::activation(tape, &up, self.activation))
    }

    /// The second half of a block.
    fn half(&self, tape: &Tape, rows: &Rows, norm: &LayerNorm, x: &Var) -> Var {
        let input = norm.forward(tape, x);
        let output = self.forward(tape, rows, &input);
        self.end.forward(
            tape,
            rows,
            Meeting { input: &input, output: &output, residual: Some(x), norm: None },
        )
    }

    fn visit_sites(&mut self, visit: &mut dyn FnMut(Site<'_>)) {
        visit(Site::Linear(&mut self.fc1));
        visit(Site::Linear(&mut self.fc2));
        visit(Site::SubLayer(&mut self.end));
    }
}

/// The first half of a block.
fn first_half(
    tape: &Tape,
    shared: &Shared,
    norm: &LayerNorm,
    attention: &SelfAttention,
    x: &Var,
    cache: Option<&mut Caches>,
) -> Var {
    let input = norm.forward(tape, x);
    let output = attention.forward(tape, shared, &input, cache);
    let meeting = Meeting { input: &input, output: &output, residual: Some(x), norm: None };
    attention.end.forward(tape, &shared.rows, meeting)
}

impl EncoderBlock {
    fn forward(&self, tape: &Tape, shared: &Shared, x: &Var) -> Var {
        let x = first_half(tape, shared, &self.norm_1, &self.attention, x, None);
        self.mlp.half(tape, &shared.rows, &self.norm_2, &x)
    }
}

impl DecoderBlock {
    fn forward(&self, tape: &Tape, shared: &Shared, x: &Var, sound: &Hidden) -> Var {
        let x = first_half(tape, shared, &self.norm_1, &self.attention, x, None);
        let seen = self.cross.forward(tape, &shared.rows, &self.norm_cross.forward(tape, &x), sound);
        self.mlp.half(tape, &shared.rows, &self.norm_2, &ops::add(tape, &x, &seen))
    }

    /// The next rows of texts that hear one sound, whose keys and values are `heard`.
    fn cached(&self, tape: &Tape, shared: &Shared, x: &Var, heard: [&Tensor; 2], caches: &mut Caches) -> Var {
        let x = first_half(tape, shared, &self.norm_1, &self.attention, x, Some(caches));
        let seen = self.cross.over(tape, &shared.rows, &self.norm_cross.forward(tape, &x), heard);
        self.mlp.half(tape, &shared.rows, &self.norm_2, &ops::add(tape, &x, &seen))
    }
}

impl Whisper {
    pub fn config(&self) -> &WhisperConfig {
        &self.config
    }

    /// What the first block reads of features `[frames, bands]`, clip by clip: two convolutions and the positions.
    fn start(&self, tape: &Tape, features: &Var, clips: &Segments, pass: &Pass) -> Hidden {
        let rows = Rows::new(clips.clone(), pass);
        let (rows, x) = self.convolve(tape, &self.encoder.conv1, &rows, features);
        let (rows, x) = self.convolve(tape, &self.encoder.conv2, &rows, &x);
        let places: Vec<u32> = rows.segments.ranges().flat_map(|r| 0..r.len() as u32).collect();
        let positions = ops::embedding(tape, &tape.weight(self.encoder.positions), &places);
        Hidden { x: ops::add(tape, &x, &positions), rows: rows.with_segments(rows.segments.clone()) }
    }

    /// A convolution of each clip by itself. Clips of one length are pictures of one line; others lie in one line, with two rows of zeros in
    /// front of each: its padding, and so that each begins where a step of 2 does.
    fn convolve(&self, tape: &Tape, conv: &Linear, rows: &Rows, x: &Var) -> (Rows, Var) {
        let lengths = rows.segments.lengths();
        let frames = lengths.first().copied().unwrap_or(0);
        let output = |grid| conv.sliding.and_then(|sliding| sliding.output(grid)).unwrap_or(grid);
        let activated = |y: &Var| ops::activation(tape, y, self.encoder.activation);
        if lengths.iter().all(|length| *length == frames) {
            let grid = Grid { images: lengths.len(), height: 1, width: frames };
            let y = conv.forward(tape, &rows.on_grid(grid), x);
            return (rows.on_grid(output(grid)), activated(&y));
        }
        let zeros = Var::constant(Tensor::zeros(2, x.cols()));
        let (x, laid) = ops::concat_segments(tape, &zeros, x, &rows.segments);
        let grid = Grid { images: 1, height: 1, width: x.rows() };
        let step = grid.width.div_ceil(output(grid).width.max(1)).max(1);
        let mut in_line = rows.with_segments(laid.clone());
        in_line.grid = Some(grid);
        let y = conv.forward(tape, &in_line, &x);
        let kept: Vec<usize> = laid.ranges().flat_map(|r| (r.start + 2) / step..r.end / step).collect();
        let lengths: Vec<usize> = lengths.iter().map(|length| length / step).collect();
        let rows = rows.with_segments(Segments::from_lengths(&lengths));
        (rows, activated(&ops::select_rows(tape, &y, &kept)))
    }

    /// The encoder's rows for the features `[frames, bands]` of some windows, laid end to end as `clips` says, an even number of frames each:
    /// `[frames / 2, C]`, and which clip each belongs to. Whisper was trained on windows of 30 s ([`WhisperConfig::frames`]); shorter
    /// ones are possible, also beside one another.
    ///
    /// # Panics
    /// If the features have another number of bands, or a clip more frames than the encoder has positions for.
    pub fn encode<'p>(&'p self, tape: &Tape<'p>, features: &Var, clips: &Segments, pass: &Pass) -> Hidden {
        let start = self.start(tape, features, clips, pass);
        self.upper_encoder(tape, start, 0, pass)
    }

    /// The rows that block `to` of the encoder reads: everything below it.
    pub fn lower_encoder(
        &self,
        tape: &Tape,
        features: &Var,
        clips: &Segments,
        to: usize,
        pass: &Pass,
    ) -> Hidden {
        let Hidden { mut x, rows } = self.start(tape, features, clips, pass);
        let shared = Shared { rows: rows.clone(), rope: None };
        for block in self.encoder.blocks.iter().take(to) {
            x = block.forward(tape, &shared, &x);
        }
        Hidden { x, rows }
    }

    /// The encoder's blocks `from..` and its last norm, over the rows that block `from` reads.
    pub fn upper_encoder<'p>(&'p self, tape: &Tape<'p>, hidden: Hidden, from: usize, pass: &Pass) -> Hidden {
        let Hidden { mut x, rows } = hidden;
        let shared = Arc::new(Shared { rows: rows.clone(), rope: None });
        for block in self.encoder.blocks.iter().skip(from) {
            x = if pass.checkpoint {
                let shared = shared.clone();
                tape.checkpoint(&x, move |tape, x| block.forward(tape, &shared, x))
            } else {
                block.forward(tape, &shared, &x)
            };
        }
        Hidden { x: self.encoder.norm.forward(tape, &x), rows }
    }

    /// The normed rows of transcripts `ids`, laid end to end as `segments` say, each over the sound of the same number.
    ///
    /// # Panics
    /// If an id or a position is beyond its table ([`Whisper::check_ids`]), or sounds and transcripts are not as many.
    pub fn decode<'p>(
        &'p self,
        tape: &Tape<'p>,
        sound: &Hidden,
        ids: &[u32],
        segments: &Segments,
        pass: &Pass,
    ) -> Hidden {
        let (x, rows) = self.embed(tape, ids, segments, None, pass);
        let shared = Shared { rows: rows.clone(), rope: None };
        let mut x = x;
        // A block that is run again has one input: rows of a sound that lead to nothing trainable may come from outside.
        let again = (pass.checkpoint && sound.x.node().is_none())
            .then(|| Arc::new((shared.clone(), sound.x.value().clone(), sound.rows.clone())));
        for block in &self.decoder.blocks {
            x = match again.clone() {
                Some(again) => tape.checkpoint(&x, move |tape, x| {
                    let sound = Hidden { x: Var::constant(again.1.clone()), rows: again.2.clone() };
                    block.forward(tape, &again.0, x, &sound)
                }),
                None => block.forward(tape, &shared, &x, sound),
            };
        }
        Hidden { x: self.decoder.norm.forward(tape, &x), rows }
    }

    /// Tokens and positions; `before`: for each text the positions before these rows.
    fn embed(
        &self,
        tape: &Tape,
        ids: &[u32],
        segments: &Segments,
        before: Option<&[usize]>,
        pass: &Pass,
    ) -> (Var, Rows) {
        let rows = Rows::new(segments.clone(), pass);
        let mut x = self.decoder.tokens.forward(tape, &rows, ids);
        if self.config.scale_embedding {
            x = ops::scale(tape, &x, (self.config.d_model as f32).sqrt());
        }
        let first = |example: usize| match before {
            Some(before) => before.get(example).copied().unwrap_or(0),
            None => self.prefix_positions(rows.active.of(example)),
        };
        let places: Vec<u32> = (rows.segments.ranges().enumerate())
            .flat_map(|(example, r)| (0..r.len()).map(move |i| (example, i)))
            .map(|(example, i)| (first(example) + i) as u32)
            .collect();
        let positions = ops::embedding(tape, &tape.weight(self.decoder.positions), &places);
        (ops::add(tape, &x, &positions), rows)
    }

    fn prefix_positions(&self, slot: Option<usize>) -> usize {
        self.decoder.blocks.first().map_or(0, |block| block.attention.heads.prefix_positions(slot))
    }

    /// Keys that an adapter puts in front of a transcript's.
    pub fn prefix_rows(&self, slot: Option<usize>) -> usize {
        self.decoder.blocks.first().map_or(0, |block| block.attention.heads.prefix_rows(slot))
    }

    /// Columns of one of the decoder's heads.
    pub fn head_dim(&self) -> usize {
        self.config.d_model / self.config.decoder_attention_heads
    }

    /// Tokens of a transcript that there is room for beside what an adapter takes.
    pub fn room(&self, slot: Option<usize>) -> usize {
        self.config.max_target_positions.saturating_sub(self.prefix_positions(slot))
    }

    /// Checks a transcript's ids before they, or their positions, index a table.
    ///
    /// # Errors
    /// If an id is not below the vocabulary's size, or there are more than positions.
    pub fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.config.vocab_size;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::Input(format!(
                "token id {id} is outside the model's vocabulary of {vocab}: the tokenizer is not this model's"
            )));
        }
        self.check_room(Some(0), ids.len())
    }

    /// Checks that there is room for so many tokens beside what an adapter takes.
    ///
    /// # Errors
    /// If there is not: which of the two is too long, and what helps.
    pub fn check_room(&self, slot: Option<usize>, tokens: usize) -> Result<()> {
        let (room, all) = (self.room(slot), self.config.max_target_positions);
        if tokens <= room {
            return Ok(());
        }
        Err(Error::Input(match self.prefix_positions(slot) {
            0 => format!(
                "{tokens} tokens are more than the {all} that a transcript may have; cut the clip into shorter ones"
            ),
            prefix => format!(
                "{tokens} tokens and the {prefix} virtual ones of the prefix are more than the {all} positions of the decoder; train \
                 with fewer (num_virtual_tokens), or cut the clip into shorter ones"
            ),
        }))
    }

    /// Logits of transcripts over sounds, for comparing with other implementations: features `[clips frames, bands]`, all windows of one
    /// length; ids laid end to end.
    ///
    /// # Errors
    /// If an id is outside the vocabulary, or a transcript too long.
    pub fn logits(
        &self,
        params: &Params,
        features: &Tensor,
        ids: &[u32],
        segments: &Segments,
    ) -> Result<Tensor> {
        segments.ranges().try_for_each(|range| self.check_ids(&ids[range]))?;
        let (tape, pass) = (Tape::inference(params), Pass::default());
        let clips = vec![features.rows() / segments.len().max(1); segments.len()];
        let clips = Segments::from_lengths(&clips);
        let sound = self.encode(&tape, &Var::constant(features.clone()), &clips, &pass);
        let hidden = self.decode(&tape, &sound, ids, segments, &pass);
        Ok(self.logits_of(&tape, &hidden.rows, &hidden.x).value().clone())
    }

    fn logits_of(&self, tape: &Tape, rows: &Rows, x: &Var) -> Var {
        match &self.head {
            Head::LanguageModel(head) => head.forward(tape, rows, x),
            _ => x.clone(),
        }
    }

    fn block_attention(&self) -> impl Iterator<Item = &SelfAttention> {
        let encoder = self.encoder.blocks.iter().map(|block| &block.attention);
        encoder.chain(self.decoder.blocks.iter().map(|block| &block.attention))
    }
}

impl Network for Whisper {
    fn model_type(&self) -> String {
        "whisper".into()
    }

    fn hidden_size(&self) -> usize {
        self.config.d_model
    }

    fn blocks(&self) -> usize {
        self.encoder.blocks.len() + self.decoder.blocks.len()
    }

    fn block_of(&self, parameter: &str) -> Option<usize> {
        self.block_attention().position(|attention| attention.heads.is_in_block(parameter))
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn trunk_linears(&self) -> Vec<&Linear> {
        let mut all = vec![&self.encoder.conv1, &self.encoder.conv2];
        for block in &self.encoder.blocks {
            all.extend(block.attention.linears());
            all.extend([&block.mlp.fc1, &block.mlp.fc2]);
        }
        for block in &self.decoder.blocks {
            all.extend(block.attention.linears());
            all.extend(block.cross.linears());
            all.extend([&block.mlp.fc1, &block.mlp.fc2]);
        }
        all
    }

    fn embeddings(&self) -> Vec<&Embedding> {
        vec![&self.decoder.tokens]
    }

    fn visit_sites(&mut self, visit: &mut dyn FnMut(Site<'_>)) {
        visit(Site::Linear(&mut self.encoder.conv1));
        visit(Site::Linear(&mut self.encoder.conv2));
        for block in &mut self.encoder.blocks {
            block.attention.visit_sites(false, visit);
            block.mlp.visit_sites(visit);
        }
        visit(Site::Embedding(&mut self.decoder.tokens));
        for block in &mut self.decoder.blocks {
            block.attention.visit_sites(true, visit);
            let CrossAttention { q, k, v, out, .. } = &mut block.cross;
            [q, k, v, out].into_iter().for_each(|linear| visit(Site::Linear(linear)));
            block.mlp.visit_sites(visit);
        }
        self.head.visit_sites(visit);
    }

    fn config_json(&self) -> serde_json::Value {
        self.config.to_json()
    }
}
