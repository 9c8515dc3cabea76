//! One byte form for everything that is hashed but audit records, which are hashed as they are packed: fixed-width little-endian numbers, lengths before contents, variants by
//! number. Derives the form from serde, so that a field added to a record is hashed without anyone having to remember it.

use serde::ser::{self, Serialize};
use std::fmt;

/// The canonical bytes of a value, behind what `into` holds already.
pub(crate) fn write_canonical<T: Serialize + ?Sized>(value: &T, into: &mut Vec<u8>) {
    // Fails only for a sequence of unknown length, and no record has one: a fault of ours that any test meets.
    value
        .serialize(&mut Canonical { bytes: into })
        .expect("records serialize");
}

/// 128 bits over a tagged value. Sums of these stand for sets, so that one record can be replaced at a time.
pub(crate) fn digest<T: Serialize + ?Sized>(tag: Tag, value: &T, scratch: &mut Vec<u8>) -> u128 {
    scratch.clear();
    scratch.push(tag as u8);
    write_canonical(value, scratch);
    let hash = blake3::hash(scratch);
    let mut first = [0; 16];
    first.copy_from_slice(&hash.as_bytes()[..16]);
    u128::from_le_bytes(first)
}

/// Keeps a record of one kind from ever hashing like one of another kind.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(crate) enum Tag {
    Invoice = 1,
    Session = 2,
    Request = 3,
    Ended = 4,
    Outcome = 5,
}

struct Canonical<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Canonical<'_> {
    fn length(&mut self, length: usize) {
        self.bytes.extend_from_slice(&(length as u64).to_le_bytes());
    }
}

#[derive(Debug)]
pub(crate) struct Unhashable(String);

impl fmt::Display for Unhashable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unhashable {}

impl ser::Error for Unhashable {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

macro_rules! numbers {
    ($($method:ident: $number:ty),*) => {
        $(fn $method(self, value: $number) -> Result<(), Unhashable> {
            self.bytes.extend_from_slice(&value.to_le_bytes());
            Ok(())
        })*
    };
}

impl ser::Serializer for &mut Canonical<'_> {
    type Ok = ();
    type Error = Unhashable;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    numbers!(
        serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64, serialize_u128: u128,
        serialize_f32: f32, serialize_f64: f64
    );

    fn serialize_bool(self, value: bool) -> Result<(), Unhashable> {
        self.serialize_u8(u8::from(value))
    }

    fn serialize_char(self, value: char) -> Result<(), Unhashable> {
        self.serialize_u32(u32::from(value))
    }

    fn serialize_str(self, value: &str) -> Result<(), Unhashable> {
        self.serialize_bytes(value.as_bytes())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Unhashable> {
        self.length(value.len());
        self.bytes.extend_from_slice(value);
        Ok(())
    }

    fn serialize_none(self) -> Result<(), Unhashable> {
        self.serialize_u8(0)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Unhashable> {
        self.bytes.push(1);
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Unhashable> {
        Ok(())
    }

    fn serialize_unit_struct(self, _name: &'static str) -> Result<(), Unhashable> {
        Ok(())
    }

    fn serialize_unit_variant(
        self,
        _name: &'static str,
        index: u32,
        _variant: &'static str,
    ) -> Result<(), Unhashable> {
        self.serialize_u32(index)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        value: &T,
    ) -> Result<(), Unhashable> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        index: u32,
        _variant: &'static str,
        value: &T,
    ) -> Result<(), Unhashable> {
        self.bytes.extend_from_slice(&index.to_le_bytes());
        value.serialize(self)
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<Self, Unhashable> {
        let length = length.ok_or_else(|| Unhashable("a sequence of unknown length".into()))?;
        self.length(length);
        Ok(self)
    }

    fn serialize_tuple(self, _length: usize) -> Result<Self, Unhashable> {
        Ok(self)
    }

    fn serialize_tuple_struct(
        self,
        _name: &'static str,
        _length: usize,
    ) -> Result<Self, Unhashable> {
        Ok(self)
    }

    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        index: u32,
        _variant: &'static str,
        _length: usize,
    ) -> Result<Self, Unhashable> {
        self.bytes.extend_from_slice(&index.to_le_bytes());
        Ok(self)
    }

    fn serialize_map(self, length: Option<usize>) -> Result<Self, Unhashable> {
        self.serialize_seq(length)
    }

    fn serialize_struct(self, _name: &'static str, _length: usize) -> Result<Self, Unhashable> {
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Self, Unhashable> {
        self.serialize_tuple_variant(name, index, variant, length)
    }
}

macro_rules! parts {
    ($($kind:ident: $method:ident),*) => {
        $(impl ser::$kind for &mut Canonical<'_> {
            type Ok = ();
            type Error = Unhashable;
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unhashable> {
                value.serialize(&mut **self)
            }
            fn end(self) -> Result<(), Unhashable> {
                Ok(())
            }
        })*
    };
}

macro_rules! named_parts {
    ($($kind:ident),*) => {
        $(impl ser::$kind for &mut Canonical<'_> {
            type Ok = ();
            type Error = Unhashable;
            fn serialize_field<T: Serialize + ?Sized>(&mut self, _name: &'static str, value: &T) -> Result<(), Unhashable> {
                value.serialize(&mut **self)
            }
            fn end(self) -> Result<(), Unhashable> {
                Ok(())
            }
        })*
    };
}

parts!(
    SerializeSeq: serialize_element, SerializeTuple: serialize_element,
    SerializeTupleStruct: serialize_field, SerializeTupleVariant: serialize_field
);
named_parts!(SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for &mut Canonical<'_> {
    type Ok = ();
    type Error = Unhashable;
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Unhashable> {
        key.serialize(&mut **self)
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unhashable> {
        value.serialize(&mut **self)
    }
    fn end(self) -> Result<(), Unhashable> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<T: Serialize>(value: T) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_canonical(&value, &mut bytes);
        bytes
    }

    #[test]
    fn values_that_differ_never_share_their_bytes() {
        assert_ne!(bytes(("ab", "c")), bytes(("a", "bc")));
        assert_ne!(
            bytes((Some(0_u8), None::<u8>)),
            bytes((None::<u8>, Some(0_u8)))
        );
        assert_ne!(
            bytes(vec![vec![1_u8], vec![]]),
            bytes(vec![vec![], vec![1_u8]])
        );
        assert_eq!(bytes(1_u16), vec![1, 0]);
    }

    #[test]
    fn the_tag_tells_records_of_two_kinds_apart() {
        let mut scratch = Vec::new();
        assert_ne!(
            digest(Tag::Invoice, &7_u64, &mut scratch),
            digest(Tag::Session, &7_u64, &mut scratch)
        );
    }
}
