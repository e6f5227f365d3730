//! What a pickle built: values of 16 bytes that point into flat arenas.
//!
//! There is no tree to walk, to clone or to drop, so neither nesting nor the memo can blow it up. Whatever is no text,
//! number, tuple, list, dictionary or tensor is an inert [`Object`]: the name of a class or function, the arguments that
//! it would have been called with, and its attributes.

use crate::Dtype;

/// What a pickle may name and this reader knows; anything else is a [`Value::Class`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Global {
    OrderedDict,
    /// `(storage, offset, shape, strides, ...)`
    RebuildTensor,
    /// `(tensor, requires_grad, hooks, ...)`
    RebuildParameter,
    /// `(function, type, arguments, attributes)`: a tensor that has attributes of its own.
    RebuildFromType,
    /// `(class, base, base's state)`: an object of a class without a constructor to call.
    Reconstructor,
    Storage(Dtype),
}

const GLOBALS: &[(&str, &str, Global)] = &[
    ("collections", "OrderedDict", Global::OrderedDict),
    ("torch._utils", "_rebuild_tensor", Global::RebuildTensor),
    ("torch._utils", "_rebuild_tensor_v2", Global::RebuildTensor),
    ("torch._utils", "_rebuild_parameter", Global::RebuildParameter),
    ("torch._utils", "_rebuild_parameter_with_state", Global::RebuildParameter),
    ("torch._tensor", "_rebuild_from_type_v2", Global::RebuildFromType),
    ("copyreg", "_reconstructor", Global::Reconstructor),
    ("copy_reg", "_reconstructor", Global::Reconstructor),
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

/// Modules that no model needs and every attack does. Nothing would be run either way; whoever opens such a file should
/// hear of it.
const PROGRAMS: &[&str] = &[
    "_pickle",
    "asyncio",
    "code",
    "codeop",
    "commands",
    "ctypes",
    "dill",
    "http",
    "importlib",
    "marshal",
    "multiprocessing",
    "nt",
    "os",
    "pickle",
    "pip",
    "posix",
    "pty",
    "requests",
    "runpy",
    "shutil",
    "signal",
    "socket",
    "subprocess",
    "sys",
    "timeit",
    "urllib",
    "webbrowser",
];

/// Of Python's own functions and types only these occur in networks.
const BUILTINS: &[&str] = &[
    "bool",
    "bytearray",
    "bytes",
    "complex",
    "dict",
    "float",
    "frozenset",
    // What a method of an object is pickled as.
    "getattr",
    "int",
    "list",
    "long",
    "object",
    "range",
    "set",
    "slice",
    "str",
    "tuple",
    "unicode",
    "xrange",
];

impl Global {
    /// What this reader knows by that name.
    pub fn find(module: &str, name: &str) -> Option<Global> {
        GLOBALS.iter().find(|(m, n, _)| *m == module && *n == name).map(|found| found.2)
    }
}

/// Is this the name of something that a file of weights has no business with?
pub fn is_program(module: &str, name: &str) -> bool {
    let root = module.split('.').next().unwrap_or_default();
    PROGRAMS.contains(&root)
        || matches!(root, "builtins" | "__builtin__") && !BUILTINS.contains(&name)
        || module == "torch.hub"
}

/// One value.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    Mark,
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// Bytes of the pickle, which are UTF-8.
    Text(u32, u32),
    /// Bytes that are no text.
    Opaque,
    /// A range of the arena, and how deep it goes.
    Tuple(u32, u32, u8),
    List(u32),
    Dict(u32),
    Global(Global),
    Class(u32),
    Object(u32),
    Storage(u32),
    Tensor(u32),
}

/// The name of a class or function that is not known: ranges of the pickle.
#[derive(Clone, Copy, Debug)]
pub struct Class {
    pub module: (u32, u32),
    pub name: (u32, u32),
}

/// What would have been made by calling a class or function that is not known.
#[derive(Clone, Debug)]
pub struct Object {
    pub class: u32,
    /// What it would have been called with.
    pub args: Value,
    /// Its attributes.
    pub state: Value,
    /// Its items, if it is a kind of dictionary.
    pub items: Vec<(Value, Value)>,
}

/// A storage: elements of one type somewhere in the file.
#[derive(Clone, Copy, Debug)]
pub struct Storage {
    pub dtype: Dtype,
    /// Bytes of the pickle: its name.
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

/// All values of a pickle.
pub struct Heap<'a> {
    /// What the ranges are of.
    pub pickle: &'a [u8],
    pub arena: Vec<Value>,
    pub lists: Vec<Vec<Value>>,
    pub dicts: Vec<Vec<(Value, Value)>>,
    pub classes: Vec<Class>,
    pub objects: Vec<Object>,
    pub storages: Vec<Storage>,
    pub tensors: Vec<View>,
}

impl<'a> Heap<'a> {
    pub fn new(pickle: &'a [u8]) -> Heap<'a> {
        Heap {
            pickle,
            arena: Vec::new(),
            lists: Vec::new(),
            dicts: Vec::new(),
            classes: Vec::new(),
            objects: Vec::new(),
            storages: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// The bytes of a range of the pickle.
    pub fn bytes(&self, range: (u32, u32)) -> &'a [u8] {
        let (at, len) = (range.0 as usize, range.1 as usize);
        self.pickle.get(at..).and_then(|rest| rest.get(..len)).unwrap_or_default()
    }

    /// A range of the pickle that is known to be UTF-8.
    pub fn str(&self, range: (u32, u32)) -> &'a str {
        std::str::from_utf8(self.bytes(range)).unwrap_or_default()
    }

    pub fn text(&self, value: Value) -> Option<&'a str> {
        if let Value::Text(at, len) = value { Some(self.str((at, len))) } else { None }
    }

    /// The items of a tuple or list.
    pub fn sequence(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::Tuple(start, len, _) => self.arena.get(start as usize..)?.get(..len as usize),
            Value::List(index) => self.lists.get(index as usize).map(Vec::as_slice),
            _ => None,
        }
    }

    /// The items of a dictionary, or of an object that is a kind of dictionary.
    pub fn entries(&self, value: Value) -> Option<&[(Value, Value)]> {
        match value {
            Value::Dict(index) => self.dicts.get(index as usize).map(Vec::as_slice),
            Value::Object(index) => {
                self.objects.get(index as usize).map(|o| o.items.as_slice()).filter(|items| !items.is_empty())
            }
            _ => None,
        }
    }

    /// The last value that a dictionary has for this key.
    pub fn get(&self, dict: Value, key: &str) -> Option<Value> {
        let found = self.entries(dict)?.iter().rfind(|(k, _)| self.text(*k) == Some(key));
        found.map(|(_, value)| *value)
    }

    pub fn object(&self, value: Value) -> Option<&Object> {
        if let Value::Object(index) = value { self.objects.get(index as usize) } else { None }
    }

    /// An attribute of an object.
    pub fn attribute(&self, value: Value, key: &str) -> Option<Value> {
        let state = self.object(value)?.state;
        // With `__slots__` it is a pair of dictionaries.
        let parts = if let Value::Tuple(..) = state { self.sequence(state) } else { None };
        parts.unwrap_or(&[state]).iter().find_map(|part| self.get(*part, key))
    }

    /// `module.name` of a class.
    pub fn class_name(&self, index: u32) -> String {
        let Some(class) = self.classes.get(index as usize) else { return String::new() };
        let text = |range| String::from_utf8_lossy(self.bytes(range));
        format!("{}.{}", text(class.module), text(class.name))
    }

    /// What a value is, for messages.
    pub fn describe(&self, value: Value) -> String {
        match value {
            Value::None => "None".into(),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => "a number".into(),
            Value::Text(..) => "a text".into(),
            Value::Tuple(..) => "a tuple".into(),
            Value::List(_) => "a list".into(),
            Value::Dict(_) => "a dictionary".into(),
            Value::Tensor(_) => "a tensor".into(),
            Value::Storage(_) => "a storage".into(),
            Value::Class(index) => crate::error::quote(&self.class_name(index)),
            Value::Object(index) => {
                let class = self.objects.get(index as usize).map_or(u32::MAX, |object| object.class);
                format!("an object of {}", crate::error::quote(&self.class_name(class)))
            }
            Value::Mark | Value::Opaque | Value::Global(_) => "something else".into(),
        }
    }
}
