//! The pickle machine: runs the opcodes that `torch.save` writes (protocols 2 to 4) over values that are only data.
//! Nothing is imported and nothing is called: the few functions a checkpoint of tensors needs are known by name and done
//! here, every other object becomes [`Node::Unknown`]. Each opcode makes at most one node and nodes refer to each other
//! by number, so that neither memo bombs nor cycles cost more than the bytes they are written in.

use safetensors::Dtype;
use std::collections::HashMap;

/// Opcodes run before a file is given up; the largest checkpoints of Stable Diffusion take about 100,000.
const MOST_OPCODES: usize = 2_000_000;
/// Values on the stack at once; pickle writes items in batches of 1,000.
const DEEPEST_STACK: usize = 1 << 17;
/// Bytes of the name of a function, class or storage.
const LONGEST_NAME: usize = 128;
/// Dimensions of a tensor.
const HIGHEST_RANK: usize = 16;

/// torch's dictionary of parameters, in which the first program of textual inversions saved them.
const PARAMETERS: &str = "torch.nn.modules.container.ParameterDict";

/// A value by its place in [`Program::nodes`].
pub(super) type Id = u32;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Box<str>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A function or class, as `module.name`.
    Global(Box<str>),
    Storage(Storage),
    Tensor(Box<View>),
    /// An object of no interest, by its class or function.
    Unknown(Box<str>),
}

/// A run of numbers in the archive's entry `data/KEY`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Storage {
    pub key: Box<str>,
    /// None for types that tensors here never have.
    pub dtype: Option<Dtype>,
}

/// A tensor: a view of a storage.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct View {
    /// A [`Node::Storage`].
    pub storage: Id,
    /// Elements before the first.
    pub offset: u64,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// What a pickle evaluates to.
#[derive(Debug)]
pub(super) struct Program {
    pub nodes: Vec<Node>,
    pub root: Id,
}

/// Runs a pickle to its end.
///
/// # Errors
/// What is wrong with it and at which byte; never panics, whatever the bytes.
pub(super) fn run(bytes: &[u8]) -> Result<Program, String> {
    run_first(bytes).map(|(program, _)| program)
}

/// Runs the first of several pickles that follow each other; says how many bytes it has.
///
/// # Errors
/// As [`run`].
pub(super) fn run_first(bytes: &[u8]) -> Result<(Program, usize), String> {
    let mut machine = Machine { bytes, at: 0, nodes: vec![], stack: vec![], marks: vec![], memo: HashMap::new() };
    for _ in 0..MOST_OPCODES {
        let at = machine.at;
        let step = machine.u8().and_then(|opcode| machine.step(opcode));
        match step.map_err(|what| format!("{what} at byte {at} of its pickle"))? {
            Some(root) => return Ok((Program { nodes: machine.nodes, root }, machine.at)),
            None if machine.stack.len() > DEEPEST_STACK => {
                return Err(format!("more than {DEEPEST_STACK} values on the stack at byte {at} of its pickle"));
            }
            None => {}
        }
    }
    Err(format!("more than {MOST_OPCODES} opcodes in its pickle"))
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Lengths of the stack at each mark that is open.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Runs one opcode (names as in Python's `pickletools`); the value once the pickle stops.
    fn step(&mut self, opcode: u8) -> Result<Option<Id>, String> {
        match opcode {
            b'.' => return self.pop().map(Some),       // STOP
            0x80 => self.protocol()?,                  // PROTO
            0x95 => drop(self.take(8)?),               // FRAME
            b'(' => self.marks.push(self.stack.len()), // MARK
            b'0' => drop(self.pop()?),                 // POP
            b'1' => drop(self.pop_to_mark()?),         // POP_MARK
            b'2' => self.stack.push(self.top()?),      // DUP
            b'N' | 0x88 | 0x89 | b'J' | b'K' | b'M' | 0x8a | 0x8b | b'G' => self.number(opcode)?,
            b'X' | 0x8c | 0x8d | b'T' | b'U' | b'B' | b'C' | 0x8e => self.text(opcode)?,
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memory(opcode)?,
            b')' | 0x85 | 0x86 | 0x87 | b't' | b']' | b'}' | 0x8f | 0x91 => self.container(opcode)?,
            b'a' | b'e' | b's' | b'u' | 0x90 => self.fill(opcode)?,
            b'c' | 0x93 => self.global(opcode)?,
            b'R' | 0x81 | 0x92 => self.call(opcode)?,
            b'b' => self.build()?,      // BUILD
            b'Q' => self.persistent()?, // BINPERSID
            _ => return Err(format!("the opcode {opcode:#04x}, which torch does not write,")),
        }
        Ok(None)
    }

    fn protocol(&mut self) -> Result<(), String> {
        match self.u8()? {
            2..=4 => Ok(()),
            other => Err(format!("pickle protocol {other}, where 2 to 4 are read; save again with protocol 2,")),
        }
    }

    fn number(&mut self, opcode: u8) -> Result<(), String> {
        let node = match opcode {
            b'N' => Node::None,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'J' => Node::Int(i32::from_le_bytes(self.array()?).into()), // BININT
            b'K' => Node::Int(self.u8()?.into()),                        // BININT1
            b'M' => Node::Int(u16::from_le_bytes(self.array()?).into()), // BININT2
            b'G' => Node::Float(f64::from_be_bytes(self.array()?)),      // BINFLOAT
            _ => {
                let length = if opcode == 0x8a { self.u8()?.into() } else { self.length32()? }; // LONG1, LONG4
                integer(self.take(length)?)
            }
        };
        self.push(node)
    }

    fn text(&mut self, opcode: u8) -> Result<(), String> {
        let length = match opcode {
            0x8c | b'U' | b'C' => self.u8()?.into(), // SHORT_BINUNICODE, SHORT_BINSTRING, SHORT_BINBYTES
            b'X' | b'T' | b'B' => self.length32()?,  // BINUNICODE, BINSTRING, BINBYTES
            _ => usize::try_from(u64::from_le_bytes(self.array()?)).map_err(|_| "a length beyond memory")?,
        };
        let bytes = self.take(length)?;
        let node = match (opcode, std::str::from_utf8(bytes)) {
            (b'B' | b'C' | 0x8e, _) => Node::Unknown("bytes".into()),
            (_, Ok(text)) => Node::Str(text.into()),
            (b'T' | b'U', Err(_)) => Node::Unknown("bytes".into()), // Python 2's strings may be anything
            (_, Err(_)) => return Err("text that is not UTF-8".into()),
        };
        self.push(node)
    }

    fn memory(&mut self, opcode: u8) -> Result<(), String> {
        let slot = match opcode {
            b'q' | b'h' => self.u8()?.into(),
            b'r' | b'j' => u32::from_le_bytes(self.array()?),
            _ => self.memo.len() as u32, // MEMOIZE; no more entries than opcodes
        };
        if let b'h' | b'j' = opcode {
            let known = self.memo.get(&slot).ok_or("a memo that was never written")?;
            self.stack.push(*known);
        } else {
            self.memo.insert(slot, self.top()?);
        }
        Ok(())
    }

    fn container(&mut self, opcode: u8) -> Result<(), String> {
        let node = match opcode {
            b')' => Node::Tuple(vec![]),
            0x85..=0x87 => Node::Tuple(self.pop_many(usize::from(opcode - 0x84))?), // TUPLE1 to TUPLE3
            b't' => Node::Tuple(self.pop_to_mark()?),
            b']' => Node::List(vec![]),
            b'}' => Node::Dict(vec![]),
            0x91 => {
                self.pop_to_mark()?;
                Node::Unknown("frozenset".into())
            }
            _ => Node::Unknown("set".into()), // EMPTY_SET
        };
        self.push(node)
    }

    /// Puts items into the container below them. Objects that merely behave like one keep nothing.
    fn fill(&mut self, opcode: u8) -> Result<(), String> {
        let items = match opcode {
            b'a' => self.pop_many(1)?, // APPEND
            b's' => self.pop_many(2)?, // SETITEM
            _ => self.pop_to_mark()?,  // APPENDS, SETITEMS, ADDITEMS
        };
        let container = self.top()?;
        match (&mut self.nodes[container as usize], opcode) {
            (Node::List(list), b'a' | b'e') => list.extend(items),
            (Node::Dict(dict), b's' | b'u') if items.len() % 2 == 0 => {
                dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            (Node::Unknown(_), _) => {}
            _ => return Err("items for something that takes none".into()),
        }
        Ok(())
    }

    fn global(&mut self, opcode: u8) -> Result<(), String> {
        let name = if opcode == b'c' {
            let (module, name) = (self.line()?, self.line()?);
            format!("{module}.{name}")
        } else {
            let pair = self.pop_many(2)?;
            match (self.node(pair[0]), self.node(pair[1])) {
                (Node::Str(module), Node::Str(name)) if module.len() + name.len() <= LONGEST_NAME => {
                    format!("{module}.{name}")
                }
                _ => return Err("a global without a name".into()),
            }
        };
        self.push(Node::Global(name.into()))
    }

    /// REDUCE, NEWOBJ and NEWOBJ_EX: a function or class and its arguments.
    fn call(&mut self, opcode: u8) -> Result<(), String> {
        if opcode == 0x92 {
            self.pop()?; // keyword arguments
        }
        let call = self.pop_many(2)?;
        let Node::Global(function) = self.node(call[0]) else {
            return self.push(Node::Unknown("a call of no function".into()));
        };
        let arguments = match self.node(call[1]) {
            Node::Tuple(arguments) => arguments.as_slice(),
            _ => return Err("a call without arguments".into()),
        };
        // a subclass of tensors wraps another function and its arguments
        let (function, arguments) = match (&**function, arguments) {
            ("torch._tensor._rebuild_from_type_v2", &[inner, _, inside, ..]) => {
                match (self.node(inner), self.node(inside)) {
                    (Node::Global(inner), Node::Tuple(inside)) => (inner, inside.as_slice()),
                    _ => return Err("a tensor with damaged arguments".into()),
                }
            }
            _ => (function, arguments),
        };
        let node = match &**function {
            "collections.OrderedDict" if arguments.is_empty() => Node::Dict(vec![]),
            "collections.defaultdict" => Node::Dict(vec![]),
            "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2" => self.tensor(arguments)?,
            "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
                let &inner = arguments.first().ok_or("a parameter without a tensor")?;
                self.stack.push(inner);
                return Ok(());
            }
            _ => Node::Unknown(function.clone()),
        };
        self.push(node)
    }

    /// An object's state. Dictionaries keep theirs in their items; of others only torch's dictionary of parameters is
    /// known, whose parameters are in its state.
    fn build(&mut self) -> Result<(), String> {
        let (state, object) = (self.pop()?, self.top()?);
        let is_parameters = matches!(self.node(object), Node::Unknown(class) if &**class == PARAMETERS);
        if let (true, Node::Dict(items)) = (is_parameters, self.node(state)) {
            let named = |&&(key, _): &&(Id, Id)| matches!(self.node(key), Node::Str(key) if &**key == "_parameters");
            if let Some(&(_, parameters)) = items.iter().find(named)
                && let Node::Dict(parameters) = self.node(parameters)
            {
                self.nodes[object as usize] = Node::Dict(parameters.clone());
            }
        }
        Ok(())
    }

    /// `(storage, offset, shape, strides, ...)`
    fn tensor(&self, arguments: &[Id]) -> Result<Node, String> {
        let damaged = || "a tensor with damaged arguments".to_string();
        let &[storage, offset, shape, strides, ..] = arguments else { return Err(damaged()) };
        let (Node::Storage(_), &Node::Int(offset)) = (self.node(storage), self.node(offset)) else {
            return Err(damaged());
        };
        let (shape, strides) = (self.dimensions(shape)?, self.dimensions(strides)?);
        if shape.len() != strides.len() {
            return Err(damaged());
        }
        let offset = u64::try_from(offset).map_err(|_| damaged())?;
        Ok(Node::Tensor(Box::new(View { storage, offset, shape, strides })))
    }

    fn dimensions(&self, tuple: Id) -> Result<Vec<usize>, String> {
        let numbers = match self.node(tuple) {
            Node::Tuple(numbers) | Node::List(numbers) if numbers.len() <= HIGHEST_RANK => numbers,
            _ => return Err("a tensor with a damaged shape".into()),
        };
        let size = |&number: &Id| match self.node(number) {
            Node::Int(n) => usize::try_from(*n).map_err(|_| "a tensor with a negative shape".to_string()),
            _ => Err("a tensor with a damaged shape".into()),
        };
        numbers.iter().map(size).collect()
    }

    /// `("storage", class, key, device, elements)`: how torch refers to the numbers outside the pickle.
    fn persistent(&mut self) -> Result<(), String> {
        let reference = self.pop()?;
        let Node::Tuple(parts) = self.node(reference) else { return Err("a reference that is no storage".into()) };
        let &[kind, class, key, ..] = parts.as_slice() else { return Err("a reference that is no storage".into()) };
        // torch before 1.0 had storages within storages
        if let Some(Node::Tuple(_)) = parts.get(5).map(|&id| self.node(id)) {
            return Err("a storage within another one".into());
        }
        let node = match [kind, class, key].map(|id| self.node(id)) {
            [Node::Str(kind), Node::Global(class), Node::Str(key)] if &**kind == "storage" => {
                if key.len() > LONGEST_NAME {
                    return Err("a storage with an endless name".into());
                }
                Node::Storage(Storage { key: key.clone(), dtype: storage_dtype(class) })
            }
            // the old form refers to classes of modules so, with their source
            [Node::Str(kind), Node::Global(_), Node::Str(_)] if &**kind == "module" => {
                self.stack.push(class);
                return Ok(());
            }
            _ => return Err("a reference that is no storage".into()),
        };
        self.push(node)
    }

    fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    fn push(&mut self, node: Node) -> Result<(), String> {
        self.stack.push(self.nodes.len() as Id); // fewer nodes than opcodes, which are fewer than 2^32
        self.nodes.push(node);
        Ok(())
    }

    /// The lowest place on the stack that may be taken: everything below belongs to an open mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id, String> {
        let top = self.stack.last().filter(|_| self.stack.len() > self.floor());
        top.copied().ok_or_else(|| "an empty stack".into())
    }

    fn pop(&mut self) -> Result<Id, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>, String> {
        match self.stack.len().checked_sub(count).filter(|&start| start >= self.floor()) {
            Some(start) => Ok(self.stack.split_off(start)),
            None => Err("an empty stack".into()),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("no mark")?;
        Ok(self.stack.split_off(mark)) // nothing below an open mark is ever taken
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let rest: &'a [u8] = &self.bytes[self.at..];
        let taken = rest.get(..count).ok_or_else(|| format!("{count} bytes wanted, {} left", rest.len()))?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("took N bytes"))
    }

    fn u8(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    fn length32(&mut self) -> Result<usize, String> {
        usize::try_from(u32::from_le_bytes(self.array()?)).map_err(|_| "a length beyond memory".into())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().take(LONGEST_NAME).position(|&b| b == b'\n').ok_or("a name without an end")?;
        let line = std::str::from_utf8(self.take(length)?).map_err(|_| "a name that is not UTF-8")?;
        self.take(1)?;
        Ok(line)
    }
}

/// A little-endian two's complement integer of any length.
fn integer(bytes: &[u8]) -> Node {
    if bytes.len() > 8 {
        return Node::Unknown("an integer of more than 64 bits".into());
    }
    let sign = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
    let mut whole = [sign; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    Node::Int(i64::from_le_bytes(whole))
}

fn storage_dtype(class: &str) -> Option<Dtype> {
    Some(match class {
        "torch.FloatStorage" => Dtype::F32,
        "torch.HalfStorage" => Dtype::F16,
        "torch.BFloat16Storage" => Dtype::BF16,
        "torch.DoubleStorage" => Dtype::F64,
        "torch.LongStorage" => Dtype::I64,
        "torch.IntStorage" => Dtype::I32,
        "torch.ShortStorage" => Dtype::I16,
        "torch.CharStorage" => Dtype::I8,
        "torch.ByteStorage" => Dtype::U8,
        "torch.BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(pickle: &[u8]) -> Node {
        let program = run(pickle).unwrap();
        program.nodes[program.root as usize].clone()
    }

    fn fault(pickle: &[u8]) -> String {
        run(pickle).unwrap_err()
    }

    #[test]
    fn numbers_and_text() {
        for (pickle, expected) in [
            (&b"\x80\x02N."[..], Node::None),
            (b"\x80\x02\x88.", Node::Bool(true)),
            (b"\x80\x02J\xfe\xff\xff\xff.", Node::Int(-2)),
            (b"\x80\x04\x95\x04\0\0\0\0\0\0\0M\x01\x02.", Node::Int(513)),
            (b"\x80\x02\x8a\x00.", Node::Int(0)),
            (b"\x80\x02\x8a\x02\x00\xff.", Node::Int(-256)),
            (b"\x80\x02\x8a\x06\0\0\0\0\0\x01.", Node::Int(1 << 40)),
            (b"\x80\x02G\x3f\xf8\0\0\0\0\0\0.", Node::Float(1.5)),
            (b"\x80\x02X\x02\0\0\0\xc3\xa4.", Node::Str("ä".into())),
            (b"\x80\x02(K\x01K\x02t.", Node::Tuple(vec![0, 1])),
        ] {
            assert_eq!(value(pickle), expected);
        }
        assert!(matches!(value(b"\x80\x02\x8a\x09\0\0\0\0\0\0\0\0\x01."), Node::Unknown(_)));
    }

    #[test]
    fn what_torch_does_not_write_is_named() {
        for (pickle, what) in [
            (&b""[..], "1 bytes wanted, 0 left at byte 0"),
            (b"\x80\x05N.", "protocol 5"),
            (b"\x80\x02i", "the opcode 0x69"),
            (b"\x80\x02X\xff\xff\xff\xffab", "4294967295 bytes wanted, 2 left"),
            (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffab", "bytes wanted, 2 left"),
            (b"\x80\x02X\x01\0\0\0\xff.", "not UTF-8"),
            (b"\x80\x02.", "an empty stack at byte 2"),
            (b"\x80\x02h\x00.", "a memo that was never written"),
            (b"\x80\x02K\x01(\x85.", "an empty stack"),
            (b"\x80\x02t.", "no mark"),
            (b"\x80\x02K\x01K\x02a.", "items for something"),
            (b"\x80\x02cos\nsystem", "a name without an end"),
            (b"\x80\x02K\x01Q", "a reference that is no storage"),
        ] {
            assert!(fault(pickle).contains(what), "{:?} for {pickle:?}", fault(pickle));
        }
    }

    #[test]
    fn code_is_never_run() {
        // what pickle.dumps writes for an object whose __reduce__ is (os.system, ("echo",))
        let pickle = b"\x80\x02cposix\nsystem\nX\x04\0\0\0echo\x85R.";
        assert_eq!(value(pickle), Node::Unknown("posix.system".into()));
    }

    #[test]
    fn bombs_cost_what_they_are_written_in() {
        // each list holds the one before it twice: 2^1000 leaves
        let mut bomb = b"\x80\x02]q\x00".to_vec();
        for _ in 0..1000 {
            bomb.extend(b"]q\x01h\x00ah\x00ah\x01q\x000");
        }
        bomb.push(b'.');
        assert!(run(&bomb).unwrap().nodes.len() < 1100);

        let mut deep = b"\x80\x02".to_vec();
        deep.extend(std::iter::repeat_n(b'N', DEEPEST_STACK + 1));
        assert!(fault(&deep).contains("on the stack"), "{}", fault(&deep));

        let mut long = b"\x80\x02".to_vec();
        long.extend(b"N0".repeat(MOST_OPCODES / 2));
        assert!(fault(&long).contains("opcodes"), "{}", fault(&long));
    }

    #[test]
    fn a_tensor_of_nonsense_is_refused() {
        let rebuild = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(";
        let storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ";
        let whole = |parts: &[&[u8]]| [&[&rebuild[..]], parts].concat().concat();
        let good = whole(&[storage, b"K\x00K\x02K\x02\x86K\x02K\x01\x86tR."]);
        assert!(matches!(value(&good), Node::Tensor(view) if view.shape == [2, 2] && view.strides == [2, 1]));
        for bad in [
            whole(&[b"K\x00K\x00K\x02\x85K\x02\x85tR."]),                 // no storage
            whole(&[storage, b"K\x00K\x02\x85K\x02K\x01\x86tR."]),        // two strides for one dimension
            whole(&[storage, b"J\xff\xff\xff\xffK\x02\x85K\x01\x85tR."]), // before the storage
            whole(&[storage, b"K\x00J\xff\xff\xff\xff\x85K\x01\x85tR."]), // -1 elements
            whole(&[storage, b"tR."]),
        ] {
            assert!(fault(&bad).contains("a tensor with"), "{}", fault(&bad));
        }
    }
}
