//! Pickles of plain values and numpy arrays, as the Python editions of CIFAR are.
//!
//! The only calls that are understood are those that rebuild a numpy array or turn text into bytes; another one refuses
//! the file.

use sdlora_pickle::{Id, Meaning, Pickle, PickleError, Problem, Value, Values};

/// A numpy array, with its bytes once they were set.
#[derive(Debug)]
struct Array(Option<Id>);

/// The calls of numpy.
struct Numpy;

impl Meaning for Numpy {
    type Object = Array;

    fn call(
        &mut self,
        values: &mut Values<'_, Array>,
        function: Id,
        args: Id,
    ) -> Result<Id, Problem> {
        let value = match values.global_name(function).as_str() {
            "numpy.core.multiarray._reconstruct" | "numpy._core.multiarray._reconstruct" => {
                Value::Object(Array(None))
            }
            "numpy.dtype" => Value::Plain,
            // How protocol 2 of Python 3 writes bytes: as text in Latin-1.
            "_codecs.encode" => {
                let text = values.items(args).and_then(|args| args.first());
                let text = text.and_then(|&id| values.text(id));
                let latin: Option<Vec<u8>> = text.and_then(|text| {
                    let chars = text.chars();
                    chars.map(|c| u8::try_from(u32::from(c)).ok()).collect()
                });
                Value::Bytes(latin.ok_or("bytes that are not written as Latin-1")?.into())
            }
            _ => return self.instance(values, function),
        };
        values.add(value)
    }

    fn instance(&mut self, values: &mut Values<'_, Array>, class: Id) -> Result<Id, Problem> {
        let name = values.global_name(class);
        Err(format!("it wants to call `{name}`, which is never done"))
    }

    /// The bytes of an array are the last part of its state.
    fn state(
        &mut self,
        values: &mut Values<'_, Array>,
        object: Id,
        state: Id,
    ) -> Result<(), Problem> {
        let last = values.items(state).and_then(|parts| parts.last().copied());
        match (values.get_mut(object), last) {
            (Value::Object(Array(bytes)), Some(last)) => {
                *bytes = Some(last);
                Ok(())
            }
            // The byte order of a dtype.
            (Value::Plain, _) => Ok(()),
            _ => Err("it sets the state of what is no array".into()),
        }
    }
}

/// A dictionary of arrays and lists.
#[derive(Debug)]
pub(super) struct Arrays<'a>(Pickle<'a, Array>);

impl<'a> Arrays<'a> {
    /// Reads a pickle of protocol 0 to 5, as far as plain data goes.
    ///
    /// # Errors
    ///
    /// [`PickleError`], for anything but plain data and numpy arrays.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, PickleError> {
        Pickle::read(bytes, &mut Numpy).map(Self)
    }

    /// The bytes of a string or an array under a key.
    pub(super) fn bytes(&self, key: &str) -> Option<&[u8]> {
        let values = &self.0.values;
        let id = self.get(key)?;
        match values.get(id) {
            Value::Object(Array(bytes)) => values.bytes((*bytes)?),
            _ => values.bytes(id),
        }
    }

    /// A list of numbers, none negative, under a key.
    pub(super) fn numbers(&self, key: &str) -> Option<Vec<usize>> {
        let values = &self.0.values;
        let items = values.items(self.get(key)?)?.iter();
        items
            .map(|&id| usize::try_from(values.non_negative(id)?).ok())
            .collect()
    }

    /// A list of texts under a key; bytes that are not UTF-8 become replacement characters.
    pub(super) fn texts(&self, key: &str) -> Option<Vec<String>> {
        let values = &self.0.values;
        let items = values.items(self.get(key)?)?.iter();
        items
            .map(|&id| Some(String::from_utf8_lossy(values.bytes(id)?).into_owned()))
            .collect()
    }

    /// The value of a key.
    fn get(&self, key: &str) -> Option<Id> {
        let values = &self.0.values;
        let Value::Dict(pairs) = values.get(self.0.top) else {
            return None;
        };
        let mut pairs = pairs.iter();
        pairs
            .find(|(name, _)| values.bytes(*name) == Some(key.as_bytes()))
            .map(|&(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `{'data': numpy array of bytes, '<key>': [labels], ...}` in protocol 2, as Python 2 wrote it.
    fn batch(data: &[u8], labels: &[(&str, &[u8])]) -> Vec<u8> {
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
        let arrays = Arrays::read(&bytes).unwrap();
        assert_eq!(arrays.bytes("data"), Some(&[1, 2, 3][..]));
        assert_eq!(arrays.numbers("labels"), Some(vec![7, 200]));
        assert_eq!(arrays.numbers("data"), None);
        for len in 0..bytes.len() {
            assert!(Arrays::read(&bytes[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn bytes_of_python_3_and_names_are_read() {
        // {'data': _codecs.encode('\x01é', 'latin1'), 'names': ['ant', 'bee']}
        let arrays = b"}(U\x04datac_codecs\nencode\nX\x03\0\0\0\x01\xc3\xa9X\x06\0\0\0latin1\x86R\
            U\x05names](U\x03antX\x03\0\0\0beeeu.";
        let arrays = Arrays::read(arrays).unwrap();
        assert_eq!(arrays.bytes("data"), Some(&[1, 0xe9][..]));
        assert_eq!(
            arrays.texts("names"),
            Some(vec!["ant".to_owned(), "bee".to_owned()])
        );
    }

    #[test]
    fn nothing_is_called() {
        for bytes in [
            b"cos\nsystem\n(S'true'\ntR.".as_slice(),
            b"(cos\nsystem\no.",
        ] {
            let error = Arrays::read(bytes).unwrap_err();
            assert!(error.problem.contains("os.system"), "{error}");
        }
    }
}
