//! `Gguf`: a model file of the format GGUF, version 3: its values by name, its tensors, and its packed weights.

mod weights;

use std::collections::HashMap;
use std::io;
use std::path::Path;

/// Bytes to which tensors are aligned, unless the file says otherwise.
const ALIGNMENT: u64 = 32;
/// The most dimensions of a tensor.
const DIMENSIONS: usize = 4;

/// A value of the file.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any whole number.
    Integer(i64),
    /// Any number with a fraction.
    Number(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Value>),
}

/// A tensor: its shape, its kind of numbers, and its place in the file.
#[derive(Clone, Debug)]
struct Tensor {
    /// The length of a row comes first.
    shape: Vec<u64>,
    kind: u32,
    start: u64,
}

/// A model file in memory.
pub struct Gguf {
    bytes: Vec<u8>,
    values: HashMap<String, Value>,
    tensors: HashMap<String, Tensor>,
    /// The first byte of the tensors.
    data: usize,
}

impl Gguf {
    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read, or is no GGUF file of version 3.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::read(std::fs::read(path)?)
    }

    /// Reads the head of a file that is in memory.
    ///
    /// # Errors
    /// The bytes are no GGUF file of version 3.
    pub fn read(bytes: Vec<u8>) -> io::Result<Self> {
        let mut reader = Reader { bytes: &bytes, at: 0 };
        if reader.take(4)? != b"GGUF" || reader.u32()? != 3 {
            return Err(invalid("no GGUF file of version 3"));
        }
        let (num_tensors, num_values) = (reader.u64()?, reader.u64()?);
        let mut values = HashMap::new();
        for _ in 0..num_values {
            let (name, kind) = (reader.text()?, reader.u32()?);
            values.insert(name, reader.value(kind, 0)?);
        }
        let mut tensors = HashMap::new();
        for _ in 0..num_tensors {
            let (name, dimensions) = (reader.text()?, reader.u32()? as usize);
            if dimensions > DIMENSIONS {
                return Err(invalid(&format!("{name}: {dimensions} dimensions")));
            }
            let shape = (0..dimensions).map(|_| reader.u64()).collect::<io::Result<_>>()?;
            let (kind, start) = (reader.u32()?, reader.u64()?);
            tensors.insert(name, Tensor { shape, kind, start });
        }
        let alignment = match values.get("general.alignment") {
            Some(&Value::Integer(alignment)) if alignment > 0 => alignment as u64,
            _ => ALIGNMENT,
        };
        let data = (reader.at as u64).next_multiple_of(alignment) as usize;
        Ok(Self { bytes, values, tensors, data })
    }

    /// Returns a whole number.
    ///
    /// # Errors
    /// The file has none of that name.
    pub fn integer(&self, name: &str) -> io::Result<usize> {
        match self.values.get(name) {
            Some(&Value::Integer(value)) if value >= 0 => Ok(value as usize),
            other => Err(invalid(&format!("{name}: {other:?}"))),
        }
    }

    /// Returns a number.
    ///
    /// # Errors
    /// The file has none of that name.
    pub fn number(&self, name: &str) -> io::Result<f64> {
        match self.values.get(name) {
            Some(&Value::Number(value)) => Ok(value),
            other => Err(invalid(&format!("{name}: {other:?}"))),
        }
    }

    /// Returns a text.
    ///
    /// # Errors
    /// The file has none of that name.
    pub fn text(&self, name: &str) -> io::Result<&str> {
        match self.values.get(name) {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(invalid(&format!("{name}: no text"))),
        }
    }

    /// Returns a list.
    ///
    /// # Errors
    /// The file has none of that name.
    pub fn list(&self, name: &str) -> io::Result<&[Value]> {
        match self.values.get(name) {
            Some(Value::List(list)) => Ok(list),
            _ => Err(invalid(&format!("{name}: no list"))),
        }
    }
}

/// Reads numbers and texts in order.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> io::Result<&'a [u8]> {
        let end = self.at.checked_add(len).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| invalid("the file ends early"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("as many bytes as were taken"))
    }

    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> io::Result<String> {
        let len = self.u64()? as usize;
        let text = std::str::from_utf8(self.take(len)?);
        Ok(text.map_err(|error| invalid(&error.to_string()))?.to_owned())
    }

    /// Reads a value of a kind. Lists hold no lists of lists.
    fn value(&mut self, kind: u32, depth: usize) -> io::Result<Value> {
        Ok(match kind {
            0 => Value::Integer(self.array::<1>()?[0].into()),
            1 => Value::Integer((self.array::<1>()?[0] as i8).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer((self.u32()? as i32).into()),
            6 => Value::Number(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            8 => Value::Text(self.text()?),
            9 if depth < 2 => {
                let (kind, len) = (self.u32()?, self.u64()?);
                let values = (0..len).map(|_| self.value(kind, depth + 1));
                Value::List(values.collect::<io::Result<_>>()?)
            }
            10 | 11 => Value::Integer(self.u64()? as i64),
            12 => Value::Number(f64::from_le_bytes(self.array()?)),
            kind => return Err(invalid(&format!("a value of kind {kind}"))),
        })
    }
}

/// Returns the error of a file that is not as it must be.
pub(crate) fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests;
