//! The pickle of a state dict, read as data: a stack machine that can build texts, numbers, tuples, dictionaries and
//! tensors, and nothing else.
//!
//! Nothing is imported or called. A global must be one of [`GLOBALS`]; any other name is an error that names it. Values
//! are copies of 16 bytes that point into flat arenas: there is no tree to walk, to clone or to drop, so neither
//! nesting nor the memo can blow it up, and the memory is counted.

use std::path::Path;

use crate::Dtype;
use crate::error::{Error, Result, quote};
use crate::limits;

/// What a pickle may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

const GLOBALS: &[(&str, &str, Global)] = &[
    ("collections", "OrderedDict", Global::OrderedDict),
    ("torch._utils", "_rebuild_tensor_v2", Global::RebuildTensor),
    ("torch._utils", "_rebuild_parameter", Global::RebuildParameter),
    ("torch", "FloatStorage", Global::Storage(Dtype::F32)),
    ("torch", "HalfStorage", Global::Storage(Dtype::F16)),
    ("torch", "BFloat16Storage", Global::Storage(Dtype::BF16)),
    ("torch", "DoubleStorage", Global::Storage(Dtype::F64)),
    ("torch", "LongStorage", Global::Storage(Dtype::I64)),
    ("torch", "IntStorage", Global::Storage(Dtype::I32)),
    ("torch", "ShortStorage", Global::Storage(Dtype::I16)),
    ("torch", "CharStorage", Global::Storage(Dtype::I8)),
    ("torch", "ByteStorage", Global::Storage(Dtype::U8)),
    ("torch", "BoolStorage", Global::Storage(Dtype::Bool)),
];

/// A value on the stack.
#[derive(Clone, Copy, Debug)]
enum Value {
    Mark,
    None,
    Bool(#[allow(dead_code)] bool),
    Int(i64),
    Float,
    /// Bytes of the pickle.
    Text(u32, u32),
    /// A range of the arena, and how deep it goes.
    Tuple(u32, u32, u8),
    List,
    Dict(u32),
    Global(Global),
    Storage(u32),
    Tensor(u32),
}

/// A storage: elements of one type in a file of the archive.
#[derive(Clone, Copy, Debug)]
pub struct Storage {
    pub dtype: Dtype,
    /// Bytes of the pickle: the name of the file in `data/`.
    pub key: (u32, u32),
    pub numel: u64,
}

/// A view of a storage.
#[derive(Clone, Debug)]
pub struct View {
    pub storage: Storage,
    /// Position of the first element.
    pub offset: u64,
    pub shape: Vec<usize>,
    /// In elements.
    pub strides: Vec<u64>,
}

/// Reads a pickle whose result is a dictionary of names and tensors, in its order. `budget` is the memory that it may
/// take, in bytes; `path` is for messages.
pub fn state_dict(path: &Path, pickle: &[u8], budget: usize) -> Result<Vec<(String, View)>> {
    let mut machine = Machine {
        path,
        pickle,
        at: 0,
        budget,
        stack: Vec::new(),
        highest: 0,
        memo: Vec::new(),
        arena: Vec::new(),
        dicts: Vec::new(),
        storages: Vec::new(),
        tensors: Vec::new(),
    };
    let top = machine.run()?;
    machine.named_tensors(top)
}

struct Machine<'a> {
    path: &'a Path,
    pickle: &'a [u8],
    at: usize,
    budget: usize,
    stack: Vec<Value>,
    highest: usize,
    memo: Vec<Value>,
    arena: Vec<Value>,
    dicts: Vec<Vec<(Value, Value)>>,
    storages: Vec<Storage>,
    tensors: Vec<View>,
}

impl Machine<'_> {
    fn bad(&self, what: impl std::fmt::Display) -> Error {
        Error::invalid(self.path, "PyTorch", format!("its pickle at byte {}: {what}", self.at))
    }

    /// Counts memory before it is taken; twice, for a vector that grows.
    fn take(&mut self, bytes: usize) -> Result<()> {
        let left = self.budget.checked_sub(2 * bytes);
        self.budget = left.ok_or_else(|| self.bad("more values than a file of this size may hold"))?;
        Ok(())
    }

    fn bytes(&mut self, n: usize) -> Result<&[u8]> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.pickle.len());
        let end = end.ok_or_else(|| self.bad("it is cut short"))?;
        let start = std::mem::replace(&mut self.at, end);
        Ok(&self.pickle[start..end])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N)?);
        Ok(out)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn push(&mut self, value: Value) -> Result<()> {
        if self.stack.len() >= self.highest {
            self.take(size_of::<Value>())?;
            self.highest += 1;
        }
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value> {
        self.stack.pop().ok_or_else(|| self.bad("the stack is empty"))
    }

    /// Position on the stack of what follows the last mark, which is taken off later with [`Machine::cut`].
    fn mark(&self) -> Result<usize> {
        let at = self.stack.iter().rposition(|v| matches!(v, Value::Mark));
        at.map(|at| at + 1).ok_or_else(|| self.bad("there is no mark on the stack"))
    }

    fn cut(&mut self, mark: usize) {
        self.stack.truncate(mark - 1);
    }

    fn text(&mut self, len: usize) -> Result<()> {
        let start = self.at;
        let text = self.bytes(len)?;
        if std::str::from_utf8(text).is_err() {
            return Err(self.bad("a text is not UTF-8"));
        }
        // Both fit: a pickle is at most limits::PICKLE_BYTES long.
        self.push(Value::Text(start as u32, len as u32))
    }

    fn str(&self, at: u32, len: u32) -> &str {
        let text = self.pickle.get(at as usize..at as usize + len as usize);
        text.and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default()
    }

    fn tuple(&mut self, from: usize) -> Result<()> {
        let items = self.stack.get(from..).unwrap_or_default();
        let depth = items.iter().map(|v| if let Value::Tuple(_, _, depth) = v { *depth } else { 0 }).max();
        let depth = depth.unwrap_or(0) + 1;
        if usize::from(depth) > limits::PICKLE_DEPTH {
            return Err(self.bad(format!("tuples are nested deeper than {}", limits::PICKLE_DEPTH)));
        }
        let (start, len) = (self.arena.len() as u32, items.len());
        self.take(len * size_of::<Value>())?;
        self.arena.extend(self.stack.drain(from..));
        self.push(Value::Tuple(start, len as u32, depth))
    }

    fn items(&self, value: Value) -> Option<&[Value]> {
        let Value::Tuple(start, len, _) = value else { return None };
        self.arena.get(start as usize..start as usize + len as usize)
    }

    fn dict(&mut self) -> Result<()> {
        self.take(size_of::<Vec<(Value, Value)>>())?;
        self.dicts.push(Vec::new());
        self.push(Value::Dict(self.dicts.len() as u32 - 1))
    }

    fn set_items(&mut self, from: usize, dict: Value) -> Result<()> {
        let items = self.stack.get(from..).unwrap_or_default();
        let pairs = items.as_chunks::<2>();
        if !pairs.1.is_empty() {
            return Err(self.bad("a key has no value"));
        }
        let pairs: Vec<(Value, Value)> = pairs.0.iter().map(|[key, value]| (*key, *value)).collect();
        self.take(2 * pairs.len() * size_of::<Value>())?;
        match dict {
            Value::Dict(index) if (index as usize) < self.dicts.len() => {
                self.dicts[index as usize].extend(pairs);
                Ok(())
            }
            _ => Err(self.bad("an item is put into what is no dictionary")),
        }
    }

    fn memoize(&mut self, index: usize) -> Result<()> {
        let value = *self.stack.last().ok_or_else(|| self.bad("the stack is empty"))?;
        // Pickles number their memo from 0 without gaps.
        if index > self.memo.len() {
            return Err(self.bad(format!("memo {index} is filled before {}", self.memo.len())));
        }
        if index == self.memo.len() {
            self.take(size_of::<Value>())?;
            self.memo.push(value);
        } else {
            self.memo[index] = value;
        }
        Ok(())
    }

    fn recall(&mut self, index: usize) -> Result<()> {
        let value = self.memo.get(index).copied();
        let value = value.ok_or_else(|| self.bad(format!("memo {index} is empty")))?;
        self.push(value)
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        let known = GLOBALS.iter().find(|(m, n, _)| *m == module && *n == name);
        let Some((_, _, global)) = known else {
            let what = format!(
                "it wants to run {}, which is not part of tensors",
                quote(&format!("{module}.{name}"))
            );
            let remedy =
                "nothing was run; if you trust it, load it in Python and save its tensors as safetensors";
            return Err(Error::unsupported(self.path, what, remedy));
        };
        self.push(Value::Global(*global))
    }

    fn line(&mut self) -> Result<String> {
        let rest = self.pickle.get(self.at..).unwrap_or_default();
        let len = rest.iter().take(limits::NAME_BYTES as usize).position(|b| *b == b'\n');
        let len = len.ok_or_else(|| self.bad("a name has no end"))?;
        let line = String::from_utf8_lossy(self.bytes(len)?).into_owned();
        self.byte()?;
        Ok(line)
    }

    /// Runs to the end and returns the result.
    fn run(&mut self) -> Result<Value> {
        loop {
            let code = self.byte()?;
            match code {
                b'.' => {
                    let top = self.pop()?;
                    let rest = self.pickle.len() - self.at;
                    return if rest == 0 {
                        Ok(top)
                    } else {
                        Err(self.bad(format!("{rest} bytes follow its end")))
                    };
                }
                0x80 => match self.byte()? {
                    2..=5 => {}
                    other => return Err(self.bad(format!("protocol {other}, wanted 2 to 5"))),
                },
                0x95 => drop(self.array::<8>()?), // FRAME
                b'(' => self.push(Value::Mark)?,
                b'N' => self.push(Value::None)?,
                0x88 => self.push(Value::Bool(true))?,
                0x89 => self.push(Value::Bool(false))?,
                b'K' | b'M' | b'J' | 0x8a => self.integer(code)?,
                b'G' => {
                    self.array::<8>()?;
                    self.push(Value::Float)?;
                }
                b'X' => {
                    let len = self.u32()? as usize;
                    self.text(len)?;
                }
                0x8c => {
                    let len = self.byte()?.into();
                    self.text(len)?;
                }
                b')' => self.tuple(self.stack.len())?,
                0x85..=0x87 => {
                    let from = self.stack.len().checked_sub(usize::from(code - 0x84));
                    self.tuple(from.ok_or_else(|| self.bad("the stack is empty"))?)?;
                }
                b't' => {
                    let mark = self.mark()?;
                    self.tuple(mark)?;
                    // The mark lies under the tuple.
                    let tuple = self.pop()?;
                    self.cut(mark);
                    self.push(tuple)?;
                }
                b']' => self.push(Value::List)?,
                b'a' => drop(self.pop()?),
                b'e' => {
                    let mark = self.mark()?;
                    self.cut(mark);
                }
                b'}' => self.dict()?,
                b's' => {
                    let from = self.stack.len().checked_sub(2).filter(|from| *from > 0);
                    let from = from.ok_or_else(|| self.bad("the stack is empty"))?;
                    self.set_items(from, self.stack[from - 1])?;
                    self.stack.truncate(from);
                }
                b'u' => {
                    let mark = self.mark()?;
                    let dict = mark.checked_sub(2).and_then(|at| self.stack.get(at)).copied();
                    self.set_items(mark, dict.unwrap_or(Value::None))?;
                    self.cut(mark);
                }
                b'q' => {
                    let index = self.byte()?.into();
                    self.memoize(index)?;
                }
                b'r' => {
                    let index = self.u32()? as usize;
                    self.memoize(index)?;
                }
                0x94 => self.memoize(self.memo.len())?,
                b'h' => {
                    let index = self.byte()?.into();
                    self.recall(index)?;
                }
                b'j' => {
                    let index = self.u32()? as usize;
                    self.recall(index)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(&module, &name)?;
                }
                0x93 => match (self.pop()?, self.pop()?) {
                    (Value::Text(n, n_len), Value::Text(m, m_len)) => {
                        let (module, name) = (self.str(m, m_len).to_string(), self.str(n, n_len).to_string());
                        self.global(&module, &name)?;
                    }
                    _ => return Err(self.bad("a global without a name")),
                },
                b'Q' => self.persistent()?,
                b'R' => self.reduce()?,
                // Attributes of an OrderedDict (a state dict's `_metadata`); nothing that is needed.
                b'b' => {
                    self.pop()?;
                    if !matches!(self.stack.last(), Some(Value::Dict(_))) {
                        return Err(self.bad("attributes are set on what is no dictionary"));
                    }
                }
                other => {
                    return Err(self.bad(format!("instruction {other:#04x}, which no file of tensors needs")));
                }
            }
        }
    }

    fn integer(&mut self, code: u8) -> Result<()> {
        let value = match code {
            b'K' => self.byte()?.into(),
            b'M' => u16::from_le_bytes(self.array()?).into(),
            b'J' => i32::from_le_bytes(self.array()?).into(),
            _ => {
                let len = usize::from(self.byte()?);
                let bytes = self.bytes(len)?;
                let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
                let mut wide = if negative { [0xff; 8] } else { [0; 8] };
                match wide.get_mut(..len) {
                    Some(low) => low.copy_from_slice(bytes),
                    None => return Err(self.bad(format!("an integer of {len} bytes"))),
                }
                i64::from_le_bytes(wide)
            }
        };
        self.push(Value::Int(value))
    }

    /// `("storage", class, key, device, numel)`.
    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let storage = match self.items(id) {
            Some(
                &[
                    Value::Text(tag, tag_len),
                    Value::Global(Global::Storage(dtype)),
                    Value::Text(key, key_len),
                    Value::Text(..),
                    Value::Int(numel @ 0..),
                ],
            ) if self.str(tag, tag_len) == "storage" => {
                Storage { dtype, key: (key, key_len), numel: numel as u64 }
            }
            _ => return Err(self.bad("a reference to what is no storage")),
        };
        self.take(size_of::<Storage>())?;
        self.storages.push(storage);
        self.push(Value::Storage(self.storages.len() as u32 - 1))
    }

    fn reduce(&mut self) -> Result<()> {
        let (args, function) = (self.pop()?, self.pop()?);
        let Value::Global(function) = function else { return Err(self.bad("a call of what is no function")) };
        let items = self.items(args).ok_or_else(|| self.bad("a call without arguments"))?;
        match (function, items) {
            (Global::OrderedDict, []) => self.dict(),
            (Global::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => self.push(*tensor),
            (
                Global::RebuildTensor,
                [Value::Storage(storage), Value::Int(offset @ 0..), shape, strides, ..],
            ) => {
                let storage = self.storages.get(*storage as usize).copied();
                let storage = storage.ok_or_else(|| self.bad("no such storage"))?;
                let (offset, shape, strides) =
                    (*offset as u64, self.numbers(*shape)?, self.numbers(*strides)?);
                if shape.len() != strides.len() || shape.len() > limits::DIMS {
                    return Err(self.bad(format!("a tensor of {} dimensions", shape.len())));
                }
                let shape = shape.into_iter().map(|d| d as usize).collect();
                self.take(size_of::<View>() + 2 * strides.len() * size_of::<u64>())?;
                self.tensors.push(View { storage, offset, shape, strides });
                self.push(Value::Tensor(self.tensors.len() as u32 - 1))
            }
            _ => Err(self.bad("a call with unusual arguments")),
        }
    }

    fn numbers(&self, value: Value) -> Result<Vec<u64>> {
        let items = self.items(value).filter(|items| items.len() <= limits::DIMS);
        let number = |v: &Value| if let Value::Int(n @ 0..) = v { Some(*n as u64) } else { None };
        items
            .and_then(|items| items.iter().map(number).collect())
            .ok_or_else(|| self.bad("a shape or a stride is not what it should be"))
    }

    /// The result as names and tensors.
    fn named_tensors(&mut self, top: Value) -> Result<Vec<(String, View)>> {
        let Value::Dict(index) = top else { return Err(self.bad("it holds no dictionary of tensors")) };
        let entries = std::mem::take(&mut self.dicts[index as usize]);
        let mut out = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let Value::Text(at, len) = key else { return Err(self.bad("a key is no text")) };
            let name = self.str(at, len).to_string();
            let Value::Tensor(tensor) = value else {
                let what = format!("{} in it is no tensor", quote(&name));
                return Err(Error::unsupported(self.path, what, "a flat dictionary of tensors was expected"));
            };
            self.take(name.len() + size_of::<(String, View)>())?;
            out.push((name, self.tensors[tensor as usize].clone()));
        }
        Ok(out)
    }
}
