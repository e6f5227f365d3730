//! A pickle, read as data: a stack machine that can build texts, numbers, tuples, lists, dictionaries, tensors and inert
//! objects, and nothing else.
//!
//! Nothing is imported or called. A class or function that is not known gives an [`Object`] that remembers what it was
//! to be called with; names that only attacks use are an error ([`heap::is_program`]). The memory is counted.

use std::path::Path;

use super::heap::{self, Class, Global, Heap, Object, Storage, Value, View};
use crate::error::{Error, Result, quote};
use crate::limits;

/// What became of a pickle.
pub struct Pickled<'a> {
    pub heap: Heap<'a>,
    /// Its result.
    pub top: Value,
    /// Position after its end.
    pub end: usize,
    /// What is left of the memory that it may take, in bytes.
    pub budget: usize,
}

/// Why a pickle could not be read.
pub enum Failure {
    /// It goes on behind the bytes that were given.
    CutShort(Error),
    Other(Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        match failure {
            Failure::CutShort(error) | Failure::Other(error) => error,
        }
    }
}

/// Reads the pickle that begins at `at`. `budget` is the memory that it may take, in bytes; `path` is for messages.
pub fn read<'a>(
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
    budget: usize,
) -> std::result::Result<Pickled<'a>, Failure> {
    let mut machine = Machine {
        path,
        pickle: bytes,
        at,
        cut_short: false,
        budget,
        stack: Vec::new(),
        highest: 0,
        memo: Vec::new(),
        heap: Heap::new(bytes),
    };
    match machine.run() {
        Ok(top) => Ok(Pickled { heap: machine.heap, top, end: machine.at, budget: machine.budget }),
        Err(error) if machine.cut_short => Err(Failure::CutShort(error)),
        Err(error) => Err(Failure::Other(error)),
    }
}

struct Machine<'a> {
    path: &'a Path,
    pickle: &'a [u8],
    at: usize,
    /// It wanted more bytes than there are.
    cut_short: bool,
    budget: usize,
    stack: Vec<Value>,
    highest: usize,
    memo: Vec<Value>,
    heap: Heap<'a>,
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

    /// The next `n` bytes: a range of the pickle.
    fn range(&mut self, n: usize) -> Result<(u32, u32)> {
        let Some(end) = self.at.checked_add(n).filter(|&end| end <= self.pickle.len()) else {
            self.cut_short = true;
            return Err(self.bad("it is cut short"));
        };
        let start = std::mem::replace(&mut self.at, end);
        // Both fit: a pickle is at most limits::PICKLE_BYTES long.
        Ok((start as u32, n as u32))
    }

    fn bytes(&mut self, n: usize) -> Result<&[u8]> {
        let range = self.range(n)?;
        Ok(self.heap.bytes(range))
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

    /// What lies under the mark: what the values above it are put into.
    fn below(&self, mark: usize) -> Value {
        mark.checked_sub(2).and_then(|at| self.stack.get(at)).copied().unwrap_or(Value::None)
    }

    /// Runs to the end and returns the result.
    fn run(&mut self) -> Result<Value> {
        loop {
            let code = self.byte()?;
            match code {
                b'.' => return self.pop(),
                0x80 => match self.byte()? {
                    2..=5 => {}
                    other => return Err(self.bad(format!("protocol {other}, wanted 2 to 5"))),
                },
                0x95 => drop(self.array::<8>()?), // FRAME
                b'(' => self.push(Value::Mark)?,
                b'0' => drop(self.pop()?),
                b'1' => {
                    let mark = self.mark()?;
                    self.cut(mark);
                }
                b'2' => {
                    let top = self.pop()?;
                    self.push(top)?;
                    self.push(top)?;
                }
                b'N' => self.push(Value::None)?,
                0x88 => self.push(Value::Bool(true))?,
                0x89 => self.push(Value::Bool(false))?,
                b'K' | b'M' | b'J' | 0x8a => self.integer(code)?,
                b'G' => {
                    let value = f64::from_be_bytes(self.array()?);
                    self.push(Value::Float(value))?;
                }
                b'X' | 0x8c | 0x8d | b'U' | b'T' | b'C' | b'B' | 0x8e | 0x96 => self.text(code)?,
                b')' | 0x85..=0x87 | b't' | b']' | b'a' | b'e' | 0x8f | 0x90 | 0x91 => self.sequence(code)?,
                b'}' => self.dict()?,
                b's' | b'u' => self.items(code)?,
                b'q' | b'r' | 0x94 | b'h' | b'j' => self.memory(code)?,
                b'c' | 0x93 => self.named(code)?,
                b'Q' => self.persistent()?,
                b'R' => {
                    let (args, function) = (self.pop()?, self.pop()?);
                    self.call(function, args)?;
                }
                0x81 => {
                    let (args, class) = (self.pop()?, self.pop()?);
                    self.call(class, args)?;
                }
                0x92 => {
                    let (_keywords, args, class) = (self.pop()?, self.pop()?, self.pop()?);
                    self.call(class, args)?;
                }
                b'b' => self.build()?,
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

    /// Texts and bytes, with a length of one, four or eight bytes in front.
    fn text(&mut self, code: u8) -> Result<()> {
        let len = match code {
            0x8c | b'U' | b'C' => self.byte()?.into(),
            b'X' | b'T' | b'B' => self.u32()? as usize,
            _ => usize::try_from(u64::from_le_bytes(self.array()?)).unwrap_or(usize::MAX),
        };
        let range = self.range(len)?;
        let is_text = std::str::from_utf8(self.heap.bytes(range)).is_ok();
        match code {
            b'X' | 0x8c | 0x8d if !is_text => Err(self.bad("a text is not UTF-8")),
            // Python 2 has one type for both.
            b'X' | 0x8c | 0x8d | b'U' | b'T' if is_text => self.push(Value::Text(range.0, range.1)),
            _ => self.push(Value::Opaque),
        }
    }

    /// Tuples, lists and sets (which are lists here).
    fn sequence(&mut self, code: u8) -> Result<()> {
        match code {
            b')' => self.tuple(self.stack.len()),
            0x85..=0x87 => {
                let from = self.stack.len().checked_sub(usize::from(code - 0x84));
                self.tuple(from.ok_or_else(|| self.bad("the stack is empty"))?)
            }
            b't' => {
                let mark = self.mark()?;
                self.tuple(mark)?;
                // The mark lies under the tuple.
                let tuple = self.pop()?;
                self.cut(mark);
                self.push(tuple)
            }
            b']' | 0x8f => self.list(Vec::new()),
            b'a' => {
                let from = self.stack.len().saturating_sub(1);
                let list = from.checked_sub(1).and_then(|at| self.stack.get(at)).copied();
                self.append(from, list.ok_or_else(|| self.bad("the stack is empty"))?)?;
                self.stack.truncate(from);
                Ok(())
            }
            0x91 => {
                let mark = self.mark()?;
                let items = self.stack.get(mark..).unwrap_or_default().to_vec();
                self.cut(mark);
                self.list(items)
            }
            _ => {
                let mark = self.mark()?;
                self.append(mark, self.below(mark))?;
                self.cut(mark);
                Ok(())
            }
        }
    }

    fn tuple(&mut self, from: usize) -> Result<()> {
        let items = self.stack.get(from..).unwrap_or_default();
        let depth = items.iter().map(|v| if let Value::Tuple(_, _, depth) = v { *depth } else { 0 }).max();
        let depth = depth.unwrap_or(0) + 1;
        if usize::from(depth) > limits::PICKLE_DEPTH {
            return Err(self.bad(format!("tuples are nested deeper than {}", limits::PICKLE_DEPTH)));
        }
        let (start, len) = (self.heap.arena.len() as u32, items.len());
        self.take(len * size_of::<Value>())?;
        self.heap.arena.extend(self.stack.drain(from..));
        self.push(Value::Tuple(start, len as u32, depth))
    }

    fn list(&mut self, items: Vec<Value>) -> Result<()> {
        self.take(size_of::<Vec<Value>>() + items.len() * size_of::<Value>())?;
        self.heap.lists.push(items);
        self.push(Value::List(self.heap.lists.len() as u32 - 1))
    }

    fn append(&mut self, from: usize, list: Value) -> Result<()> {
        let count = self.stack.len().saturating_sub(from);
        match list {
            Value::List(index) if (index as usize) < self.heap.lists.len() => {
                self.take(count * size_of::<Value>())?;
                let items = self.stack.get(from..).unwrap_or_default();
                self.heap.lists[index as usize].extend_from_slice(items);
                Ok(())
            }
            // A kind of list: what is in it is nobody's concern.
            Value::Object(_) => Ok(()),
            _ => Err(self.bad("an item is put into what is no list")),
        }
    }

    fn dict(&mut self) -> Result<()> {
        self.take(size_of::<Vec<(Value, Value)>>())?;
        self.heap.dicts.push(Vec::new());
        self.push(Value::Dict(self.heap.dicts.len() as u32 - 1))
    }

    fn items(&mut self, code: u8) -> Result<()> {
        if code == b's' {
            let from = self.stack.len().checked_sub(2).filter(|from| *from > 0);
            let from = from.ok_or_else(|| self.bad("the stack is empty"))?;
            self.set_items(from, self.stack[from - 1])?;
            self.stack.truncate(from);
        } else {
            let mark = self.mark()?;
            self.set_items(mark, self.below(mark))?;
            self.cut(mark);
        }
        Ok(())
    }

    fn set_items(&mut self, from: usize, dict: Value) -> Result<()> {
        let items = self.stack.get(from..).unwrap_or_default();
        let pairs = items.as_chunks::<2>();
        if !pairs.1.is_empty() {
            return Err(self.bad("a key has no value"));
        }
        let pairs: Vec<(Value, Value)> = pairs.0.iter().map(|[key, value]| (*key, *value)).collect();
        self.take(2 * pairs.len() * size_of::<Value>())?;
        let dict = match dict {
            Value::Dict(index) => self.heap.dicts.get_mut(index as usize),
            Value::Object(index) => self.heap.objects.get_mut(index as usize).map(|object| &mut object.items),
            _ => None,
        };
        match dict {
            Some(dict) => dict.extend(pairs),
            None => return Err(self.bad("an item is put into what is no dictionary")),
        }
        Ok(())
    }

    fn memory(&mut self, code: u8) -> Result<()> {
        let index = match code {
            b'q' | b'h' => self.byte()?.into(),
            b'r' | b'j' => self.u32()? as usize,
            _ => self.memo.len(),
        };
        match code {
            b'h' | b'j' => {
                let value = self.memo.get(index).copied();
                let value = value.ok_or_else(|| self.bad(format!("memo {index} is empty")))?;
                self.push(value)
            }
            _ => self.memoize(index),
        }
    }

    fn memoize(&mut self, index: usize) -> Result<()> {
        let value = *self.stack.last().ok_or_else(|| self.bad("the stack is empty"))?;
        // Pickles number their memo from 0 (Python 2's from 1) without gaps.
        if index == 1 && self.memo.is_empty() {
            self.take(size_of::<Value>())?;
            self.memo.push(Value::None);
        }
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

    /// A class or function: two lines, or two texts on the stack.
    fn named(&mut self, code: u8) -> Result<()> {
        let class = if code == b'c' {
            Class { module: self.line()?, name: self.line()? }
        } else {
            match (self.pop()?, self.pop()?) {
                (Value::Text(n, n_len), Value::Text(m, m_len)) => {
                    Class { module: (m, m_len), name: (n, n_len) }
                }
                _ => return Err(self.bad("a global without a name")),
            }
        };
        let (module, name) = (self.heap.bytes(class.module), self.heap.bytes(class.name));
        let (Ok(module), Ok(name)) = (std::str::from_utf8(module), std::str::from_utf8(name)) else {
            return Err(self.bad("a name is not UTF-8"));
        };
        if heap::is_program(module, name) {
            let what = format!(
                "it wants to run {}, which is not part of tensors",
                quote(&format!("{module}.{name}"))
            );
            let remedy =
                "nothing was run; if you trust it, load it in Python and save its tensors as safetensors";
            return Err(Error::unsupported(self.path, what, remedy));
        }
        if let Some(global) = Global::find(module, name) {
            return self.push(Value::Global(global));
        }
        self.take(size_of::<Class>())?;
        self.heap.classes.push(class);
        self.push(Value::Class(self.heap.classes.len() as u32 - 1))
    }

    fn line(&mut self) -> Result<(u32, u32)> {
        let rest = self.pickle.get(self.at..).unwrap_or_default();
        let len = rest.iter().take(limits::NAME_BYTES as usize).position(|b| *b == b'\n');
        let Some(len) = len else {
            self.cut_short = rest.len() < limits::NAME_BYTES as usize;
            return Err(self.bad("a name has no end"));
        };
        let line = self.range(len)?;
        self.byte()?;
        Ok(line)
    }

    /// `("storage", class, key, device, numel)`, in the format before archives with a sixth part: a view of another
    /// storage, which was never more than planned; or `("module", class, source file, source)`.
    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let storage = match self.heap.sequence(id) {
            Some(
                &[
                    tag,
                    Value::Global(Global::Storage(dtype)),
                    Value::Text(key, key_len),
                    Value::Text(..),
                    Value::Int(numel @ 0..),
                    ref view @ ..,
                ],
            ) if self.heap.text(tag) == Some("storage") && matches!(view, [] | [Value::None]) => {
                Storage { dtype, key: (key, key_len), numel: numel as u64 }
            }
            Some(&[tag, class @ Value::Class(_), ..]) if self.heap.text(tag) == Some("module") => {
                return self.push(class);
            }
            _ => return Err(self.bad("a reference to what is no storage")),
        };
        self.take(size_of::<Storage>())?;
        self.heap.storages.push(storage);
        self.push(Value::Storage(self.heap.storages.len() as u32 - 1))
    }

    /// What a function, or a class, would have given for these arguments.
    fn call(&mut self, function: Value, args: Value) -> Result<()> {
        if let Value::Class(class) = function {
            return self.new_object(class, args);
        }
        let Value::Global(function) = function else { return Err(self.bad("a call of what is no function")) };
        let items = match args {
            Value::Tuple(..) => self.heap.sequence(args),
            _ => None,
        };
        let items = items.ok_or_else(|| self.bad("a call without arguments"))?;
        match (function, items) {
            (Global::OrderedDict, []) => self.dict(),
            (Global::OrderedDict, &[pairs]) => self.ordered_dict(pairs),
            (Global::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => self.push(*tensor),
            (Global::RebuildTensor, &[storage, offset, shape, strides, ..]) => {
                self.tensor(storage, offset, shape, strides)
            }
            // These two are of torch's own, and no deeper than that: such a tensor isn't made of another such.
            (Global::RebuildFromType, &[Value::Global(inner @ Global::RebuildTensor), _, args, ..])
            | (Global::RebuildFromType, &[Value::Global(inner @ Global::RebuildParameter), _, args, ..]) => {
                self.call(Value::Global(inner), args)
            }
            (Global::Reconstructor, &[Value::Class(class), ..]) => self.new_object(class, args),
            _ => Err(self.bad("a call with unusual arguments")),
        }
    }

    fn new_object(&mut self, class: u32, args: Value) -> Result<()> {
        self.take(size_of::<Object>())?;
        self.heap.objects.push(Object { class, args, state: Value::None, items: Vec::new() });
        self.push(Value::Object(self.heap.objects.len() as u32 - 1))
    }

    /// Python 2 hands a list of pairs over.
    fn ordered_dict(&mut self, pairs: Value) -> Result<()> {
        let unusual = |machine: &Self| machine.bad("a call with unusual arguments");
        let list = self.heap.sequence(pairs).ok_or_else(|| unusual(self))?;
        let pair = |value: &Value| match self.heap.sequence(*value) {
            Some(&[key, value]) => Some((key, value)),
            _ => None,
        };
        let count = list.len();
        let entries = list.iter().map(pair).collect::<Option<Vec<_>>>().ok_or_else(|| unusual(self))?;
        self.take(2 * count * size_of::<Value>())?;
        self.dict()?;
        if let Some(dict) = self.heap.dicts.last_mut() {
            *dict = entries;
        }
        Ok(())
    }

    fn tensor(&mut self, storage: Value, offset: Value, shape: Value, strides: Value) -> Result<()> {
        let storage = match storage {
            Value::Storage(index) => self.heap.storages.get(index as usize).copied(),
            _ => None,
        };
        let (Some(storage), Value::Int(offset @ 0..)) = (storage, offset) else {
            return Err(self.bad("a call with unusual arguments"));
        };
        let (offset, shape, strides) = (offset as u64, self.numbers(shape)?, self.numbers(strides)?);
        if shape.len() != strides.len() || shape.len() > limits::DIMS {
            return Err(self.bad(format!("a tensor of {} dimensions", shape.len())));
        }
        let shape = shape.into_iter().map(|d| d as usize).collect();
        self.take(size_of::<View>() + 2 * strides.len() * size_of::<u64>())?;
        self.heap.tensors.push(View { storage, offset, shape, strides });
        self.push(Value::Tensor(self.heap.tensors.len() as u32 - 1))
    }

    /// A shape or strides; `torch.Size` is a tuple in disguise.
    fn numbers(&self, value: Value) -> Result<Vec<u64>> {
        let value = match self.heap.object(value).map(|size| self.heap.sequence(size.args)) {
            Some(Some(&[inner])) => inner,
            _ => value,
        };
        let items = self.heap.sequence(value).filter(|items| items.len() <= limits::DIMS);
        let number = |v: &Value| if let Value::Int(n @ 0..) = v { Some(*n as u64) } else { None };
        items
            .and_then(|items| items.iter().map(number).collect())
            .ok_or_else(|| self.bad("a shape or a stride is not what it should be"))
    }

    /// Gives an object its attributes. Those of an `OrderedDict` (a state dict's `_metadata`) are nothing that is needed.
    fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        match self.stack.last() {
            Some(Value::Dict(_) | Value::Tensor(_)) => Ok(()),
            Some(Value::Object(index)) => {
                if let Some(object) = self.heap.objects.get_mut(*index as usize) {
                    object.state = state;
                }
                Ok(())
            }
            _ => Err(self.bad("attributes are set on what is no object")),
        }
    }
}
