//! Reads the pickles of the Python editions of CIFAR: plain values and numpy arrays, nothing is executed.
//!
//! Opcodes as documented in Python's `pickletools`. A callable is a name here and stays one; the only calls that are
//! understood are those that rebuild a numpy array or turn text into bytes.

use std::borrow::Cow;

/// Why a pickle cannot be read; ends a sentence about the file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PickleError {
    /// The bytes end before the pickle does.
    #[error("is a pickle that ends at byte {0}, before its end")]
    Truncated(usize),
    /// An opcode that plain data does not need.
    #[error("is a pickle with the opcode 0x{opcode:02x} at byte {at}, which is not read")]
    Opcode {
        /// The opcode.
        opcode: u8,
        /// Its position.
        at: usize,
    },
    /// A callable other than numpy's.
    #[error("is a pickle that wants to call `{0}`, which is never done")]
    Callable(String),
    /// Opcodes that do not fit together.
    #[error("is a damaged pickle at byte {0}")]
    Damaged(usize),
}

/// Position of a value; values refer to each other by it, so shared parts are shared and nesting costs no stack.
type Id = usize;

/// One value.
#[derive(Debug)]
enum Node<'a> {
    /// Nothing, a truth value or a number with a fraction: not needed, not kept.
    Other,
    /// A whole number.
    Int(i64),
    /// Bytes; text is its UTF-8 bytes, as Python 2 wrote it.
    Bytes(Cow<'a, [u8]>),
    /// A tuple or list.
    List(Vec<Id>),
    /// A dictionary, in the order of writing.
    Dict(Vec<(Id, Id)>),
    /// The name of something callable.
    Callable(String),
    /// A numpy array, with its bytes once they were set.
    Array(Option<Id>),
}

/// A pickle whose outermost value is a dictionary.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    nodes: Vec<Node<'a>>,
    root: Id,
}

impl<'a> Pickle<'a> {
    /// Reads a pickle of protocol 0 to 5, as far as plain data goes.
    ///
    /// # Errors
    ///
    /// [`PickleError`], for anything but plain data and numpy arrays.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, PickleError> {
        let mut machine = Machine {
            bytes,
            at: 0,
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
        };
        let root = machine.run()?;
        Ok(Self {
            nodes: machine.nodes,
            root,
        })
    }

    /// The bytes of a string or an array under a key.
    pub(crate) fn bytes(&self, key: &str) -> Option<&[u8]> {
        match self.get(key)? {
            Node::Array(Some(bytes)) => self.nodes[*bytes].bytes(),
            node => node.bytes(),
        }
    }

    /// A list of numbers, none negative, under a key.
    pub(crate) fn numbers(&self, key: &str) -> Option<Vec<usize>> {
        let Node::List(items) = self.get(key)? else {
            return None;
        };
        let number = |id: &Id| match self.nodes[*id] {
            Node::Int(number) => usize::try_from(number).ok(),
            _ => None,
        };
        items.iter().map(number).collect()
    }

    /// A list of texts under a key.
    pub(crate) fn texts(&self, key: &str) -> Option<Vec<String>> {
        let Node::List(items) = self.get(key)? else {
            return None;
        };
        items.iter().map(|&id| self.nodes[id].text()).collect()
    }

    /// The value of a key.
    fn get(&self, key: &str) -> Option<&Node<'a>> {
        let Node::Dict(items) = &self.nodes[self.root] else {
            return None;
        };
        items
            .iter()
            .find(|(name, _)| self.nodes[*name].bytes() == Some(key.as_bytes()))
            .map(|&(_, value)| &self.nodes[value])
    }
}

impl Node<'_> {
    fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    fn text(&self) -> Option<String> {
        self.bytes()
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }
}

/// Highest memo position; each is written by an opcode of its own, so a larger one is damage.
const MAX_MEMO: usize = 1 << 20;

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: Vec<Option<Id>>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id, PickleError> {
        loop {
            let at = self.at;
            let opcode = self.take(1)?[0];
            match opcode {
                b'.' => return self.pop(),
                // Protocol and frame sizes.
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                b'(' => self.marks.push(self.stack.len()),
                b'N' | 0x88 | 0x89 => self.push(Node::Other),
                b'G' => {
                    self.take(8)?;
                    self.push(Node::Other);
                }
                b'J' => {
                    let number = self.number(4)? as u32 as i32;
                    self.push(Node::Int(number.into()));
                }
                b'K' => self.push_number(1)?,
                b'M' => self.push_number(2)?,
                b'I' | b'L' => {
                    let line = self.line()?;
                    let number = line.trim_end_matches('L').parse().ok();
                    let number = number.ok_or(PickleError::Damaged(at))?;
                    self.push(Node::Int(number));
                }
                // A long of up to eight bytes, two's complement.
                0x8a => {
                    let len = self.number(1)?;
                    let digits = self.take(len)?;
                    if len > 8 {
                        return Err(PickleError::Damaged(at));
                    }
                    let is_negative = digits.last().is_some_and(|&b| b >= 0x80);
                    let mut padded = [if is_negative { 0xff } else { 0 }; 8];
                    padded[..len].copy_from_slice(digits);
                    self.push(Node::Int(i64::from_le_bytes(padded)));
                }
                b'U' | b'C' | 0x8c => self.push_bytes(1)?,
                b'T' | b'B' | b'X' => self.push_bytes(4)?,
                0x8d | 0x8e => self.push_bytes(8)?,
                b'S' | b'V' => {
                    let line = self.line()?;
                    let text = line.trim_matches(['\'', '"']).as_bytes().to_vec();
                    self.push(Node::Bytes(text.into()));
                }
                b']' | b')' => self.push(Node::List(Vec::new())),
                b'}' => self.push(Node::Dict(Vec::new())),
                b'a' => {
                    let item = self.pop()?;
                    self.extend_list(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.extend_list(items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.extend_dict(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.extend_dict(items)?;
                }
                b't' | b'l' => {
                    let items = self.pop_to_mark()?;
                    self.push(Node::List(items));
                }
                b'd' => {
                    let items = self.pop_to_mark()?;
                    self.push(Node::Dict(Vec::new()));
                    self.extend_dict(items)?;
                }
                0x85..=0x87 => {
                    let n = usize::from(opcode - 0x84);
                    let start = self.stack.len().checked_sub(n);
                    let items = self.stack.split_off(start.ok_or(PickleError::Damaged(at))?);
                    self.push(Node::List(items));
                }
                b'q' => self.put(1)?,
                b'r' => self.put(4)?,
                b'p' => {
                    let slot = self.line()?.parse().ok();
                    self.put_at(slot.ok_or(PickleError::Damaged(at))?)?;
                }
                0x94 => self.put_at(self.memo.len())?,
                b'h' => self.get(1)?,
                b'j' => self.get(4)?,
                b'g' => {
                    let slot = self.line()?.parse().ok();
                    self.get_at(slot.ok_or(PickleError::Damaged(at))?)?;
                }
                b'0' => drop(self.pop()?),
                b'c' => {
                    let name = format!("{}.{}", self.line()?, self.line()?);
                    self.push(Node::Callable(name));
                }
                0x93 => {
                    let name = self.pop_text().ok_or(PickleError::Damaged(at))?;
                    let module = self.pop_text().ok_or(PickleError::Damaged(at))?;
                    let name = format!("{module}.{name}");
                    self.push(Node::Callable(name));
                }
                b'R' => self.call(at)?,
                b'b' => self.build(at)?,
                _ => return Err(PickleError::Opcode { opcode, at }),
            }
        }
    }

    /// Calls one of the few callables that plain arrays need.
    fn call(&mut self, at: usize) -> Result<(), PickleError> {
        let arguments = self.pop()?;
        let callable = self.pop()?;
        let (Node::Callable(name), Node::List(arguments)) =
            (&self.nodes[callable], &self.nodes[arguments])
        else {
            return Err(PickleError::Damaged(at));
        };
        let node = match name.as_str() {
            "numpy.core.multiarray._reconstruct" | "numpy._core.multiarray._reconstruct" => {
                Node::Array(None)
            }
            "numpy.dtype" => Node::Other,
            // How protocol 2 of Python 3 writes bytes: as text in Latin-1.
            "_codecs.encode" => {
                let text = arguments.first().and_then(|&id| self.nodes[id].text());
                let text = text.ok_or(PickleError::Damaged(at))?;
                let latin: Option<Vec<u8>> = text
                    .chars()
                    .map(|c| u8::try_from(u32::from(c)).ok())
                    .collect();
                Node::Bytes(latin.ok_or(PickleError::Damaged(at))?.into())
            }
            _ => return Err(PickleError::Callable(name.clone())),
        };
        self.push(node);
        Ok(())
    }

    /// Sets the state of the value below: the bytes of an array are the last part of its state.
    fn build(&mut self, at: usize) -> Result<(), PickleError> {
        let state = self.pop()?;
        let bytes = match &self.nodes[state] {
            Node::List(parts) => parts.last().copied(),
            _ => None,
        };
        let target = self.stack.last().map(|&id| &mut self.nodes[id]);
        match (target, bytes) {
            (Some(Node::Array(set)), Some(bytes)) => {
                *set = Some(bytes);
                Ok(())
            }
            (Some(Node::Other), _) => Ok(()),
            _ => Err(PickleError::Damaged(at)),
        }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], PickleError> {
        let part = self
            .at
            .checked_add(n)
            .and_then(|end| self.bytes.get(self.at..end));
        let part = part.ok_or(PickleError::Truncated(self.bytes.len()))?;
        self.at += n;
        Ok(part)
    }

    /// A little-endian number of `n` bytes.
    fn number(&mut self, n: usize) -> Result<usize, PickleError> {
        let mut padded = [0; 8];
        padded[..n].copy_from_slice(self.take(n)?);
        usize::try_from(u64::from_le_bytes(padded)).map_err(|_| PickleError::Damaged(self.at))
    }

    fn push_number(&mut self, n: usize) -> Result<(), PickleError> {
        let number = self.number(n)? as i64;
        self.push(Node::Int(number));
        Ok(())
    }

    /// Bytes with their length before them, in `n` bytes.
    fn push_bytes(&mut self, n: usize) -> Result<(), PickleError> {
        let len = self.number(n)?;
        let bytes = self.take(len)?.into();
        self.push(Node::Bytes(bytes));
        Ok(())
    }

    fn line(&mut self) -> Result<String, PickleError> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&b| b == b'\n');
        let end = end.ok_or(PickleError::Truncated(self.bytes.len()))?;
        self.at += end + 1;
        Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
    }

    fn push(&mut self, node: Node<'a>) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        self.stack.pop().ok_or(PickleError::Damaged(self.at))
    }

    fn pop_text(&mut self) -> Option<String> {
        self.stack.pop().and_then(|id| self.nodes[id].text())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        let mark = self.marks.pop().filter(|&mark| mark <= self.stack.len());
        Ok(self
            .stack
            .split_off(mark.ok_or(PickleError::Damaged(self.at))?))
    }

    /// Appends to the list on top.
    fn extend_list(&mut self, items: Vec<Id>) -> Result<(), PickleError> {
        match self.stack.last().map(|&id| &mut self.nodes[id]) {
            Some(Node::List(list)) => {
                list.extend(items);
                Ok(())
            }
            _ => Err(PickleError::Damaged(self.at)),
        }
    }

    /// Adds keys and values in turn to the dictionary on top.
    fn extend_dict(&mut self, items: Vec<Id>) -> Result<(), PickleError> {
        match self.stack.last().map(|&id| &mut self.nodes[id]) {
            Some(Node::Dict(dict)) => {
                dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                Ok(())
            }
            _ => Err(PickleError::Damaged(self.at)),
        }
    }

    fn put(&mut self, n: usize) -> Result<(), PickleError> {
        let slot = self.number(n)?;
        self.put_at(slot)
    }

    fn put_at(&mut self, slot: usize) -> Result<(), PickleError> {
        let value = self.stack.last().copied();
        let value = value.ok_or(PickleError::Damaged(self.at))?;
        if slot > MAX_MEMO {
            return Err(PickleError::Damaged(self.at));
        }
        if slot >= self.memo.len() {
            self.memo.resize(slot + 1, None);
        }
        self.memo[slot] = Some(value);
        Ok(())
    }

    fn get(&mut self, n: usize) -> Result<(), PickleError> {
        let slot = self.number(n)?;
        self.get_at(slot)
    }

    fn get_at(&mut self, slot: usize) -> Result<(), PickleError> {
        let value = self.memo.get(slot).copied().flatten();
        self.stack.push(value.ok_or(PickleError::Damaged(self.at))?);
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// `{'data': numpy array of bytes, '<key>': [labels], ...}` in protocol 2, as Python 2 wrote it.
    pub(crate) fn batch(data: &[u8], labels: &[(&str, &[u8])]) -> Vec<u8> {
        let text = |text: &str| [&[b'U', text.len() as u8], text.as_bytes()].concat();
        let mut bytes = b"\x80\x02}q\x01(".to_vec();
        bytes.extend(text("data"));
        // _reconstruct(ndarray, (0,), 'b')
        bytes.extend(
            b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nK\x00\x85U\x01b\x87R",
        );
        // State: version, shape, dtype, order, bytes.
        bytes.extend(b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87RN\x89T");
        bytes.extend((data.len() as u32).to_le_bytes());
        bytes.extend(data);
        bytes.extend(b"tb");
        for (key, labels) in labels {
            bytes.extend(text(key));
            bytes.extend(b"]q\x03(");
            for &label in *labels {
                bytes.extend([b'K', label]);
            }
            bytes.push(b'e');
        }
        bytes.extend(b"u.");
        bytes
    }

    #[test]
    fn a_batch_is_read() {
        let bytes = batch(&[1, 2, 3], &[("labels", &[7, 200])]);
        let pickle = Pickle::read(&bytes).unwrap();
        assert_eq!(pickle.bytes("data"), Some(&[1, 2, 3][..]));
        assert_eq!(pickle.numbers("labels"), Some(vec![7, 200]));
        assert_eq!(pickle.numbers("data"), None);
        for len in 0..bytes.len() {
            assert!(Pickle::read(&bytes[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn nothing_is_called_and_nesting_costs_no_stack() {
        let error = Pickle::read(b"cos\nsystem\n(S'true'\ntR.").unwrap_err();
        assert_eq!(error, PickleError::Callable("os.system".to_owned()));
        let mut deep = vec![b'N'];
        deep.extend(std::iter::repeat_n(0x85, 1 << 20));
        deep.push(b'.');
        assert_eq!(Pickle::read(&deep).unwrap().bytes("data"), None);
    }
}
