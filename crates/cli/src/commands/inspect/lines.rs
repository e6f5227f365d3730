//! The tensors of a file as lines: each by itself, those of all layers together, or layer by layer.

use super::Listed;
use crate::style::count;

/// A line of the list.
pub struct Line {
    pub name: String,
    pub shape: Vec<usize>,
    pub rest: String,
}

/// One for each tensor.
pub fn of_tensors(tensors: &[Listed]) -> Vec<Line> {
    let line = |t: &Listed| Line { name: t.name.clone(), shape: t.shape.clone(), rest: t.dtype.clone() };
    tensors.iter().map(line).collect()
}

/// One for all layers' tensors of the same name, shape and type.
pub fn of_like_layers(tensors: &[Listed]) -> Vec<Line> {
    let mut lines: Vec<(Line, usize)> = Vec::new();
    for tensor in tensors {
        let line = Line {
            name: without_layer(&tensor.name),
            shape: tensor.shape.clone(),
            rest: tensor.dtype.clone(),
        };
        let like =
            |known: &Line| (&known.name, &known.shape, &known.rest) == (&line.name, &line.shape, &line.rest);
        match lines.iter_mut().find(|(known, _)| like(known)) {
            Some((_, times)) => *times += 1,
            None => lines.push((line, 1)),
        }
    }
    for (line, times) in lines.iter_mut().filter(|(_, times)| *times > 1) {
        line.rest += &format!("  x {times}");
    }
    lines.into_iter().map(|(line, _)| line).collect()
}

/// One for each layer, in the order of their numbers: its largest tensor, how many tensors it has and how many values.
pub fn of_layers(tensors: &[Listed]) -> Vec<Line> {
    let mut layers: Vec<(&str, Vec<&Listed>)> = Vec::new();
    for tensor in tensors {
        let layer = layer(&tensor.name);
        match layers.iter_mut().find(|(known, _)| *known == layer) {
            Some((_, its)) => its.push(tensor),
            None => layers.push((layer, vec![tensor])),
        }
    }
    // Lists stay where their first layer stands; files may have their layers in the order of letters.
    let list = |name: &str| name.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
    let first: Vec<String> = layers.iter().map(|(name, _)| list(name)).collect();
    layers.sort_by_key(|(name, _)| {
        let place = first.iter().position(|known| *known == list(name));
        let number: Option<u64> = name.rsplit('.').next().and_then(|number| number.parse().ok());
        (place, number)
    });
    let line = |(name, its): (&str, Vec<&Listed>)| {
        let largest = its.iter().max_by_key(|tensor| tensor.values)?;
        let values: u64 = its.iter().map(|tensor| tensor.values).sum();
        let rest = match its.len() {
            1 => format!("{} values", count(values)),
            n => format!("the largest of {n} tensors, {} values", count(values)),
        };
        Some(Line { name: name.into(), shape: largest.shape.clone(), rest })
    };
    layers.into_iter().filter_map(line).collect()
}

/// `model.layers.17.mlp` as `model.layers.*.mlp`.
pub fn without_layer(name: &str) -> String {
    let part =
        |part: &str| if part.bytes().all(|b| b.is_ascii_digit()) { "*".to_owned() } else { part.to_owned() };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

/// `model.4.cv1.weight` as `model.4`; of what has no number, all in front of the last part.
fn layer(name: &str) -> &str {
    let ends = name.match_indices('.').map(|(at, _)| at);
    let mut start = 0;
    let mut last = 0;
    for end in ends {
        if !name[start..end].is_empty() && name[start..end].bytes().all(|b| b.is_ascii_digit()) {
            return &name[..end];
        }
        (start, last) = (end + 1, end);
    }
    &name[..last]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_have_numbers() {
        assert_eq!(without_layer("model.layers.17.mlp.up_proj.weight"), "model.layers.*.mlp.up_proj.weight");
        for (name, of) in [
            ("model.4.cv1.conv.weight", "model.4"),
            ("_blocks.11._bn1.weight", "_blocks.11"),
            ("_conv_stem.weight", "_conv_stem"),
            ("weight", ""),
        ] {
            assert_eq!(layer(name), of);
        }
    }

    #[test]
    fn layers_stand_in_the_order_of_their_numbers() {
        let tensor = |name: &str, values| Listed {
            name: name.into(),
            shape: vec![values as usize],
            dtype: "F32".into(),
            values,
            bytes: 4 * values,
        };
        let all = [
            tensor("a.0.weight", 6),
            tensor("a.10.weight", 3),
            tensor("a.2.bias", 1),
            tensor("a.2.weight", 5),
            tensor("b.1.weight", 2),
        ];
        let lines = of_layers(&all);
        let names: Vec<&str> = lines.iter().map(|line| line.name.as_str()).collect();
        assert_eq!(names, ["a.0", "a.2", "a.10", "b.1"]);
        assert_eq!(
            (&lines[1].shape, lines[1].rest.as_str()),
            (&vec![5], "the largest of 2 tensors, 6 values")
        );
    }
}
