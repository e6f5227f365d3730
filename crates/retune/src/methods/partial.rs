//! Partial fine-tuning: the last blocks with what stands above them, or any parameters by name, as f32 masters.

use retune_tensor::ParamId;
use serde_json::json;

use super::targets::nearest;
use super::{Attached, Spec, delta, remember, trainable_count};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::run_file;

pub const SPEC: Spec = Spec {
    name: "partial",
    summary: "the last blocks and the head, or any parameters by name; the frozen part is computed once an example",
    source: "-",
    default_lr: 2e-5,
    adapter: true,
    attach: |model, run| attach(model, &run.partial),
};

/// Marks the last `last_blocks` blocks, the last norm and the head trainable, or all behind the first `freeze` layers, or
/// what the patterns of `train` name. A head that is tied to the token table stays frozen with it, unless the table is
/// named.
///
/// # Errors
/// If there are not so many blocks or layers, a pattern matches nothing (the message names the nearest), or a weight is not
/// held in f32.
pub fn attach(model: &mut Model, settings: &run_file::Partial) -> Result<Attached> {
    let (ids, by) = match (&settings.train, settings.freeze) {
        (Some(patterns), _) => (named(model, patterns)?, json!({"train": patterns})),
        (None, Some(layers)) => (behind(model, layers as usize)?, json!({"freeze": layers})),
        (None, None) => {
            let blocks = settings.last_blocks;
            (last_blocks(model, blocks as usize)?, json!({"last_blocks": blocks}))
        }
    };
    model.params.freeze_all();
    delta::train(model, SPEC.name, &ids)?;
    remember(model, 0, SPEC.name, None);
    Ok(Attached {
        modules: delta::names(model, &ids),
        trainable: trainable_count(model),
        save: Some(delta::saver(SPEC.name, &by, ids)),
        ..Attached::default()
    })
}

/// The parameters of the last `count` blocks and of all that comes after them.
fn last_blocks(model: &Model, count: usize) -> Result<Vec<ParamId>> {
    let blocks = model.net.blocks();
    let Some(first) = blocks.checked_sub(count) else {
        let what = format!("last_blocks = {count}, but the model has {blocks} blocks");
        return Err(Error::Method(what));
    };
    Ok(from(&placed(model, |name| model.net.block_of(name)), first))
}

/// The parameters of all layers but the first `count`, as the model's files number them; of 0, all parameters.
fn behind(model: &Model, count: usize) -> Result<Vec<ParamId>> {
    let parts = placed(model, |name| model.net.layer_of(name));
    let layers = parts.iter().filter_map(|(_, layer)| *layer).max().map_or(0, |last| last + 1);
    match count {
        0 => Ok(parts.into_iter().map(|(id, _)| id).collect()),
        _ if count <= layers => Ok(from(&parts, count)),
        _ => Err(Error::Method(format!(
            "freeze = {count}, but the layers in front of the head are numbered 0 to {}; freeze = {layers} leaves the head alone to be trained",
            layers.saturating_sub(1)
        ))),
    }
}

/// The model's own parameters with the numbers of their places, in the order in which the model reads them.
fn placed(model: &Model, place: impl Fn(&str) -> Option<usize>) -> Vec<(ParamId, Option<usize>)> {
    let base = model.params.iter().filter(|(_, p)| !p.adapter && !p.buffer);
    base.map(|(id, p)| (id, place(&p.name))).collect()
}

/// What lies in place `first` or a later one, and what follows the last place: the last norm and the head.
fn from(parts: &[(ParamId, Option<usize>)], first: usize) -> Vec<ParamId> {
    let last = parts.iter().rposition(|(_, place)| place.is_some()).unwrap_or(0);
    let chosen = |i: usize, place: Option<usize>| place.map_or(i > last, |place| place >= first);
    let parts = parts.iter().enumerate();
    parts.filter(|(i, (_, place))| chosen(*i, *place)).map(|(_, (id, _))| *id).collect()
}

/// The parameters that at least one pattern names.
fn named(model: &Model, patterns: &[String]) -> Result<Vec<ParamId>> {
    let base: Vec<(ParamId, &str)> = model
        .params
        .iter()
        .filter(|(_, p)| !p.adapter && !p.buffer)
        .map(|(id, p)| (id, p.name.as_str()))
        .collect();
    for pattern in patterns {
        if !base.iter().any(|(_, name)| matches(pattern, name)) {
            let known = base.iter().flat_map(|(_, name)| candidates(pattern, name));
            let near = nearest(pattern, known).unwrap_or_default();
            return Err(Error::Method(format!(
                "train names \"{pattern}\", which matches no parameter of this model; did you mean \"{near}\"? A pattern is a \
                 whole name, a part of one between dots, or has * for any text"
            )));
        }
    }
    let chosen = base.into_iter().filter(|(_, name)| patterns.iter().any(|p| matches(p, name)));
    Ok(chosen.map(|(id, _)| id).collect())
}

/// With `*`, the whole name must fit; else the pattern is some neighbouring parts of it: `layers.1`, `q_proj`, `bias`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.contains('*') {
        true => glob(pattern, name),
        false => format!(".{name}.").contains(&format!(".{pattern}.")),
    }
}

/// `*` stands for any text, dots included.
fn glob(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|front| name.strip_prefix(front)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// What a misspelt pattern may have meant in this name: its parts, or as much of it as the pattern has parts.
fn candidates<'a>(pattern: &str, name: &'a str) -> Vec<&'a str> {
    let wanted = pattern.split('.').count();
    let starts = || std::iter::once(0).chain(name.match_indices('.').map(|(at, _)| at + 1));
    let ends: Vec<usize> = name.match_indices('.').map(|(at, _)| at).chain([name.len()]).collect();
    let cut = |(i, start): (usize, usize)| ends.get(i + wanted - 1).map(|&end| &name[start..end]);
    starts().enumerate().filter_map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_parameters() {
        let name = "model.layers.1.self_attn.q_proj.bias";
        for pattern in ["*.bias", "model.layers.1.*", "*q_proj*", "*", "q_proj", "bias", "layers.1", name] {
            assert!(matches(pattern, name), "{pattern}");
        }
        for pattern in
            ["*.weight", "layers.1.*", "model.layers.11.*", "layers", "q_pro", "ayers.1", "*bias.*", ""]
        {
            assert_eq!(matches(pattern, name), pattern == "layers", "{pattern}");
        }
        assert!(glob("a*b*b", "axbb") && !glob("a*b*b", "axb"));
    }

    #[test]
    fn a_typo_is_compared_with_as_many_parts() {
        assert!(candidates("layer.1", "model.layers.1.mlp").contains(&"layers.1"));
        assert_eq!(candidates("a.b.c", "x.y"), Vec::<&str>::new());
    }
}
