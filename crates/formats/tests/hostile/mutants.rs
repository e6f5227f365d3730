//! Ways to spoil a file: cuts, single bytes, fields of JSON, entries of a safetensors header, and anything at random.

use serde_json::{Value, json};

/// Numbers that depend on nothing but the seed (xorshift64*).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// One of the ways, at one of the places: case `i` of many.
pub fn mutate(good: &[u8], name: &str, rng: &mut Rng) -> Vec<u8> {
    match rng.below(10) {
        0 => good[..rng.below(good.len())].to_vec(),
        1 | 2 => one_byte(good, rng),
        3..=6 if name.ends_with(".json") => json_field(good, rng),
        3..=6 if name.ends_with(".safetensors") => header_entry(good, rng),
        _ => splice(good, rng),
    }
}

/// Changes one byte, more often near the beginning, where the header is.
fn one_byte(good: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut out = good.to_vec();
    let reach = if rng.below(2) == 0 { out.len() } else { out.len().min(600) };
    let at = rng.below(reach);
    out[at] = match rng.below(4) {
        0 => out[at] ^ (1 << rng.below(8)),
        1 => *rng.pick(b"0123456789-+.eE\"{}[],: \\truefalsn\0\xff"),
        _ => rng.below(256) as u8,
    };
    out
}

/// Cuts out, doubles, moves or overwrites pieces, one to four times.
fn splice(good: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut out = good.to_vec();
    for _ in 0..=rng.below(4) {
        if out.is_empty() {
            break;
        }
        let from = rng.below(out.len());
        let to = (from + 1 + rng.below(24)).min(out.len());
        let piece = out[from..to].to_vec();
        let at = rng.below(out.len());
        match rng.below(4) {
            0 => drop(out.drain(from..to)),
            1 => drop(out.splice(at..at, piece)),
            2 => out[from..to].iter_mut().for_each(|b| *b = rng.below(256) as u8),
            _ => {
                let end = (at + piece.len()).min(out.len());
                out[at..end].copy_from_slice(&piece[..end - at]);
            }
        }
    }
    out
}

/// What a field may become.
fn odd_value(rng: &mut Rng) -> Value {
    match rng.below(18) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(false),
        3 => json!(0),
        4 => json!(-1),
        5 => json!(1),
        6 => json!(2),
        7 => json!(1u64 << 40),
        8 => json!(u64::MAX),
        9 => json!(1e308),
        10 => json!(0.5),
        11 => json!(""),
        12 => json!("x"),
        13 => json!("("),
        14 => json!([]),
        15 => json!({}),
        16 => json!(["q", 1, null]),
        _ => json!({"": {"": [[[]]]}, "default": 1e-9}),
    }
}

/// Changes, removes, renames or doubles a field, at any depth.
fn json_field(good: &[u8], rng: &mut Rng) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<Value>(good) else { return splice(good, rng) };
    let mut place = &mut value;
    while let Value::Object(map) = place {
        let keys: Vec<String> = map.keys().cloned().collect();
        if keys.is_empty() {
            break;
        }
        let key = rng.pick(&keys).clone();
        let inner = matches!(map[&key], Value::Object(_)) && rng.below(3) > 0;
        if inner {
            place = map.get_mut(&key).unwrap();
            continue;
        }
        match rng.below(6) {
            0 => drop(map.remove(&key)),
            1 => {
                let old = map.remove(&key).unwrap();
                map.insert(format!("{key}_"), old);
            }
            2 => drop(map.insert("more".into(), odd_value(rng))),
            _ => drop(map.insert(key, odd_value(rng))),
        }
        break;
    }
    let mut text = serde_json::to_vec(&value).unwrap();
    if rng.below(12) == 0 {
        // A key twice.
        let at = text.iter().position(|b| *b == b'{').unwrap_or(0) + 1;
        let twice: Vec<u8> =
            text.get(at..).unwrap_or_default().iter().take_while(|b| **b != b',').copied().collect();
        text.splice(at..at, [&twice[..], b","].concat());
    }
    text
}

/// Changes an entry of a safetensors header, or a value to one that is not finite, and keeps the rest in order.
fn header_entry(good: &[u8], rng: &mut Rng) -> Vec<u8> {
    let len = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let (header, mut data) = (&good[8..8 + len], good[8 + len..].to_vec());
    let mut value: Value = serde_json::from_slice(header).unwrap();
    let map = value.as_object_mut().unwrap();
    let names: Vec<String> = map.keys().filter(|k| *k != "__metadata__").cloned().collect();
    let name = rng.pick(&names).clone();
    match rng.below(12) {
        0 => {
            let at = rng.below(data.len() / 4) * 4;
            let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
            data[at..at + 4].copy_from_slice(&rng.pick(&odd).to_le_bytes());
        }
        1 => {
            let entry = map.remove(&name).unwrap();
            let ends = [".x", ".weight", ".default.weight", "_", ".lora_A.weight", "0"];
            map.insert(format!("{name}{}", rng.pick(&ends)), entry);
        }
        2 => {
            let entry = map.remove(&name).unwrap();
            map.insert(name.replacen(['a', 'l', '0'], "b", 1), entry);
        }
        3 => drop(map.remove(&name)),
        4 => {
            // Two tensors change places.
            let other = rng.pick(&names).clone();
            let (one, two) = (map[&name].clone(), map[&other].clone());
            map.insert(name, two);
            map.insert(other, one);
        }
        5 => drop(map.insert("more".into(), json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}))),
        6 => map[&name]["dtype"] = json!(rng.pick(&["F16", "BF16", "I32", "F64", "U32", "BOOL", "X"])),
        7 => map[&name]["shape"].as_array_mut().unwrap().reverse(),
        8 => map[&name]["shape"].as_array_mut().unwrap().push(json!(1)),
        9 => map[&name]["shape"].as_array_mut().unwrap().insert(0, json!(1)),
        10 => map[&name]["shape"] = odd_value(rng),
        _ => map[&name]["data_offsets"][rng.below(2)] = json!(rng.below(2 * data.len())),
    }
    let header = serde_json::to_vec(&value).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}
