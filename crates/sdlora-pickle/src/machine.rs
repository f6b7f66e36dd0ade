//! A machine for pickles of protocol 0 to 5 that imports nothing and calls nothing.
//!
//! The instructions are those of Python's `pickletools`.

use std::collections::HashMap;

use crate::error::{PickleError, Problem};
use crate::limits::{MAX_INSTRUCTIONS, MAX_STACK};
use crate::meaning::Meaning;
use crate::value::{Id, Value, Values};

/// What a pickle describes.
#[derive(Debug)]
pub struct Pickle<'a, O> {
    /// All values.
    pub values: Values<'a, O>,
    /// The value the program ends with.
    pub top: Id,
}

impl<'a, O> Pickle<'a, O> {
    /// Runs the program in `bytes`; `meaning` says what its calls give.
    ///
    /// # Errors
    ///
    /// [`PickleError`] when the program is damaged, beyond the [limits](crate::limits), or does what `meaning` refuses.
    pub fn read(
        bytes: &'a [u8],
        meaning: &mut impl Meaning<Object = O>,
    ) -> Result<Self, PickleError> {
        let mut machine = Machine {
            bytes,
            at: 0,
            values: Values::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            meaning,
        };
        match machine.run() {
            Ok(top) => Ok(Self {
                values: machine.values,
                top,
            }),
            Err(problem) => Err(PickleError {
                offset: machine.at,
                problem,
            }),
        }
    }
}

struct Machine<'a, 'm, M: Meaning> {
    bytes: &'a [u8],
    at: usize,
    values: Values<'a, M::Object>,
    stack: Vec<Id>,
    /// Heights of the stack at which a mark lies.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    meaning: &'m mut M,
}

impl<'a, M: Meaning> Machine<'a, '_, M> {
    fn run(&mut self) -> Result<Id, Problem> {
        for _ in 0..MAX_INSTRUCTIONS {
            let code = self.byte()?;
            if code == b'.' {
                return self.pop();
            }
            self.step(code)?;
            if self.stack.len() > MAX_STACK || self.marks.len() > MAX_STACK {
                return Err("its stack grows beyond any checkpoint's".into());
            }
        }
        Err("it has more instructions than any checkpoint".into())
    }

    fn step(&mut self, code: u8) -> Result<(), Problem> {
        match code {
            // PROTO and FRAME say how the rest is cut up, which does not matter here.
            0x80 => self.skip(1),
            0x95 => self.skip(8),
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => match self.marks.last() {
                Some(&mark) if mark == self.stack.len() => self.pop_mark().map(drop),
                _ => self.pop().map(drop),
            },
            b'1' => self.pop_mark().map(drop),
            b'2' => {
                let top = self.peek()?;
                self.stack.push(top);
                Ok(())
            }

            b'N' => self.push(Value::Plain),
            0x88 | 0x89 => self.push(Value::Bool),
            b'I' | b'L' => {
                let text = self.line()?.trim_end_matches('L');
                let value = text.parse().map_or(Value::Plain, Value::Int);
                self.push(value)
            }
            b'J' => {
                let x = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(x.into()))
            }
            b'K' => {
                let x = self.byte()?;
                self.push(Value::Int(x.into()))
            }
            b'M' => {
                let x = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(x.into()))
            }
            0x8a => {
                let n = self.byte()?;
                self.long(n.into())
            }
            0x8b => {
                let n = u32::from_le_bytes(self.array()?);
                self.long(n.into())
            }
            b'F' => {
                self.line()?;
                self.push(Value::Plain)
            }
            b'G' => {
                self.skip(8)?;
                self.push(Value::Plain)
            }

            b'S' => {
                // Quoted; escapes stay as they are written.
                let text = self.line()?;
                let text = text.get(1..text.len().saturating_sub(1)).unwrap_or("");
                self.push(Value::Str(text.as_bytes()))
            }
            b'V' => {
                let text = self.line()?;
                self.push(Value::Str(text.as_bytes()))
            }
            // Byte strings of Python 2.
            b'U' => {
                let n = self.byte()?;
                self.raw_text(n.into())
            }
            b'T' => {
                let n = u32::from_le_bytes(self.array()?);
                self.raw_text(n.into())
            }
            0x8c => {
                let n = self.byte()?;
                self.text(n.into())
            }
            b'X' => {
                let n = u32::from_le_bytes(self.array()?);
                self.text(n.into())
            }
            0x8d => {
                let n = u64::from_le_bytes(self.array()?);
                self.text(n)
            }
            b'C' => {
                let n = self.byte()?;
                self.blob(n.into())
            }
            b'B' => {
                let n = u32::from_le_bytes(self.array()?);
                self.blob(n.into())
            }
            0x8e | 0x96 => {
                let n = u64::from_le_bytes(self.array()?);
                self.blob(n)
            }

            b')' => self.push(Value::Tuple(Box::default())),
            0x85..=0x87 => {
                let mut items = [0; 3];
                let items = &mut items[..usize::from(code - 0x84)];
                for item in items.iter_mut().rev() {
                    *item = self.pop()?;
                }
                let tuple = Value::Tuple((&*items).into());
                self.push(tuple)
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items.into()))
            }
            b']' => self.push(Value::List(Vec::new())),
            b'l' => {
                let items = self.pop_mark()?;
                self.push(Value::List(items))
            }
            b'a' => {
                let item = self.pop()?;
                self.extend_list(&[item])
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.extend_list(&items)
            }
            b'}' => self.push(Value::Dict(Vec::new())),
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Value::Dict(Vec::new()))?;
                self.extend_dict(&items)
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.extend_dict(&[key, value])
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.extend_dict(&items)
            }
            0x8f => self.push(Value::Plain),
            0x90 => {
                self.pop_mark()?;
                self.peek().map(drop)
            }
            0x91 => {
                self.pop_mark()?;
                self.push(Value::Plain)
            }

            b'p' | b'q' | b'r' | 0x94 => {
                let key = match code {
                    b'p' => self.line_number()?,
                    b'q' => self.byte()?.into(),
                    b'r' => u32::from_le_bytes(self.array()?).into(),
                    _ => self.memo.len() as u64,
                };
                let top = self.peek()?;
                self.memo.insert(key, top);
                Ok(())
            }
            b'g' | b'h' | b'j' => {
                let key = match code {
                    b'g' => self.line_number()?,
                    b'h' => self.byte()?.into(),
                    _ => u32::from_le_bytes(self.array()?).into(),
                };
                let id = self.memo.get(&key).copied();
                let id =
                    id.ok_or_else(|| format!("it recalls value {key}, which it never kept"))?;
                self.stack.push(id);
                Ok(())
            }

            b'c' => {
                let global = self.global()?;
                self.push(global)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.values.text(module), self.values.text(name)) {
                    (Some(module), Some(name)) => self.push(Value::Global(module, name)),
                    _ => Err("an import without a name".into()),
                }
            }
            // REDUCE, NEWOBJ, and NEWOBJ_EX with keywords, which no tensor has.
            b'R' | 0x81 | 0x92 => {
                if code == 0x92 {
                    self.pop()?;
                }
                let (args, function) = (self.pop()?, self.pop()?);
                let id = self.meaning.call(&mut self.values, function, args)?;
                self.stack.push(id);
                Ok(())
            }
            b'b' => {
                let (state, object) = (self.pop()?, self.peek()?);
                self.meaning.state(&mut self.values, object, state)
            }
            b'i' => {
                let class = self.global()?;
                let class = self.values.add(class)?;
                self.pop_mark()?;
                self.instance(class)
            }
            b'o' => {
                let items = self.pop_mark()?;
                let class = *items.first().ok_or("an object without a class")?;
                self.instance(class)
            }
            b'Q' => {
                let id = self.pop()?;
                let value = self.meaning.persistent(&self.values, id)?;
                self.push(value)
            }
            _ => Err(format!(
                "it has the instruction {code:#04x}, which neither checkpoints nor plain data use"
            )),
        }
    }

    fn instance(&mut self, class: Id) -> Result<(), Problem> {
        let id = self.meaning.instance(&mut self.values, class)?;
        self.stack.push(id);
        Ok(())
    }

    fn push(&mut self, value: Value<'a, M::Object>) -> Result<(), Problem> {
        let id = self.values.add(value)?;
        self.stack.push(id);
        Ok(())
    }

    /// Takes the top, which must lie above the last mark.
    fn pop(&mut self) -> Result<Id, Problem> {
        let top = self.peek()?;
        self.stack.pop();
        Ok(top)
    }

    fn peek(&self) -> Result<Id, Problem> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let above = self.stack.get(floor..).unwrap_or_default();
        above
            .last()
            .copied()
            .ok_or_else(|| "it takes a value from an empty stack".into())
    }

    /// Takes everything above the last mark, and the mark.
    fn pop_mark(&mut self) -> Result<Vec<Id>, Problem> {
        let mark = self.marks.pop().ok_or("it looks for a mark it never set")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn extend_list(&mut self, items: &[Id]) -> Result<(), Problem> {
        let id = self.peek()?;
        match self.values.get_mut(id) {
            Value::List(list) => list.extend(items),
            Value::Unbuilt(_) => {}
            _ => return Err("it appends to what is no list".into()),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Id]) -> Result<(), Problem> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("a key without a value".into());
        }
        let id = self.peek()?;
        match self.values.get_mut(id) {
            Value::Dict(dict) => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            Value::Unbuilt(_) => {}
            _ => return Err("it sets an item of what is no dictionary".into()),
        }
        Ok(())
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], Problem> {
        let rest = &self.bytes[self.at..];
        let n = usize::try_from(n).ok().filter(|&n| n <= rest.len());
        let n = n.ok_or("it ends in the middle of an instruction")?;
        self.at += n;
        Ok(&rest[..n])
    }

    fn skip(&mut self, n: u64) -> Result<(), Problem> {
        self.take(n).map(drop)
    }

    fn byte(&mut self) -> Result<u8, Problem> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    fn line(&mut self) -> Result<&'a str, Problem> {
        let n = self.bytes[self.at..].iter().position(|&b| b == b'\n');
        let line = self.take(n.ok_or("a line without an end")? as u64)?;
        self.at += 1;
        std::str::from_utf8(line).map_err(|_| "a text that is not UTF-8".into())
    }

    fn line_number(&mut self) -> Result<u64, Problem> {
        let line = self.line()?;
        line.parse()
            .map_err(|_| format!("`{line}` where a number should be"))
    }

    fn text(&mut self, n: u64) -> Result<(), Problem> {
        let text = std::str::from_utf8(self.take(n)?)
            .map_err(|_| Problem::from("a text that is not UTF-8"))?;
        self.push(Value::Str(text.as_bytes()))
    }

    fn raw_text(&mut self, n: u64) -> Result<(), Problem> {
        let text = self.take(n)?;
        self.push(Value::Str(text))
    }

    fn blob(&mut self, n: u64) -> Result<(), Problem> {
        let bytes = self.take(n)?;
        self.push(Value::Bytes(bytes.into()))
    }

    /// A two's complement of `n` bytes.
    fn long(&mut self, n: u64) -> Result<(), Problem> {
        let bytes = self.take(n)?;
        let value = match bytes.last() {
            Some(&last) if bytes.len() <= 8 => {
                let fill = if last & 0x80 == 0 { 0 } else { 0xff };
                let mut wide = [fill; 8];
                wide[..bytes.len()].copy_from_slice(bytes);
                Value::Int(i64::from_le_bytes(wide))
            }
            Some(_) => Value::Plain,
            None => Value::Int(0),
        };
        self.push(value)
    }

    fn global(&mut self) -> Result<Value<'a, M::Object>, Problem> {
        Ok(Value::Global(self.line()?, self.line()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Leaves every call and notes its name.
    #[derive(Default)]
    struct Names(Vec<String>);

    impl Meaning for Names {
        type Object = ();

        fn call(
            &mut self,
            values: &mut Values<'_, ()>,
            function: Id,
            _: Id,
        ) -> Result<Id, Problem> {
            self.instance(values, function)
        }

        fn instance(&mut self, values: &mut Values<'_, ()>, class: Id) -> Result<Id, Problem> {
            self.0.push(values.global_name(class));
            values.add(Value::Unbuilt(class))
        }
    }

    fn read(bytes: &[u8]) -> Result<Pickle<'_, ()>, PickleError> {
        Pickle::read(bytes, &mut Names::default())
    }

    fn problem(bytes: &[u8]) -> String {
        read(bytes).unwrap_err().problem
    }

    #[test]
    fn numbers_of_every_width_are_read() {
        for (bytes, expected) in [
            (b"\x80\x02K\x07.".as_slice(), 7),
            (b"M\x01\x02.", 513),
            (b"J\xff\xff\xff\xff.", -1),
            (b"\x8a\x02\x00\xff.", -256),
            (b"\x8a\x00.", 0),
            (b"I12\n.", 12),
            (b"L-3L\n.", -3),
        ] {
            let pickle = read(bytes).unwrap();
            assert!(matches!(pickle.values.get(pickle.top), Value::Int(x) if *x == expected));
        }
    }

    #[test]
    fn texts_and_bytes_are_told_apart() {
        for (bytes, text) in [
            (b"S'ab'\n.".as_slice(), true),
            (b"Vab\n.", true),
            (b"U\x02ab.", true),
            (b"X\x02\0\0\0ab.", true),
            (b"\x8c\x02ab.", true),
            (b"C\x02ab.", false),
            (b"B\x02\0\0\0ab.", false),
        ] {
            let pickle = read(bytes).unwrap();
            assert_eq!(pickle.values.bytes(pickle.top), Some(&b"ab"[..]));
            assert_eq!(pickle.values.text(pickle.top), text.then_some("ab"));
        }
        // Python 2 wrote bytes as text; a text of Python 3 is UTF-8.
        let pickle = read(b"U\x01\xff.").unwrap();
        assert_eq!(pickle.values.bytes(pickle.top), Some(&b"\xff"[..]));
        assert!(problem(b"X\x01\0\0\0\xff.").contains("UTF-8"));
    }

    #[test]
    fn a_call_is_named_and_not_made() {
        for bytes in [
            b"cos\nsystem\n(X\x02\x00\x00\x00lstR.".as_slice(),
            b"(ios\nsystem\n.",
            b"(cos\nsystem\no.",
            b"\x8c\x02os\x8c\x06system\x93)R.",
        ] {
            let mut names = Names::default();
            let pickle = Pickle::read(bytes, &mut names).unwrap();
            assert!(matches!(pickle.values.get(pickle.top), Value::Unbuilt(_)));
            assert_eq!(names.0, ["os.system"]);
        }
    }

    #[test]
    fn nesting_costs_no_stack() {
        let mut deep = vec![b'N'];
        deep.extend(std::iter::repeat_n(0x85, 1 << 19));
        deep.push(b'.');
        assert!(read(&deep).is_ok());
    }

    #[test]
    fn a_program_that_makes_no_sense_is_refused() {
        assert!(problem(b"").contains("ends"));
        assert!(problem(b".").contains("empty stack"));
        assert!(problem(b"N(00.").contains("empty stack"));
        assert!(problem(b"N(.").contains("empty stack"));
        assert!(problem(b"t.").contains("mark"));
        assert!(problem(b"h\x01.").contains("never kept"));
        assert!(problem(b"X\xff\xff\xff\xffa.").contains("ends"));
        assert!(problem(b"}(Nu.").contains("without a value"));
        assert!(problem(b"NNa.").contains("no list"));
        assert!(problem(b"\x97.").contains("0x97"));
        assert!(problem(b"NQ.").contains("persistent"));
        assert!(problem(&[b'N'; 2 << 20]).contains("more values"));
        assert!(problem(&[b'('; 2 << 20]).contains("stack"));
        let mut long = b"N".to_vec();
        long.extend(b"20".repeat(3 << 20));
        assert!(problem(&long).contains("more instructions"));
    }
}
