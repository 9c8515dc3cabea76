//! Reads the canonical bytes of an audit record back into what they say. Decides nothing: bytes that are not exactly the form
//! which the ledger hashes are an error. The form: fixed-width little-endian numbers, lengths before contents, a 0 or 1 before
//! what may be absent, variants by number.

use std::fmt;

use billing_core::ledger::audit::{AuditRecord, ChainHash};
use serde::{
    Deserialize,
    de::{self, DeserializeSeed, IntoDeserializer, Visitor},
};

/// The record whose canonical form these bytes are; its hash is not among them and comes from the caller.
pub fn record(bytes: &[u8], hash: ChainHash) -> Result<AuditRecord, Unreadable> {
    let mut reader = Reader { bytes };
    let (index, at, wall, actor, what, invoice, token, key) =
        Deserialize::deserialize(&mut reader)?;
    let record = AuditRecord {
        index,
        at,
        wall,
        actor,
        what,
        invoice,
        token,
        key,
        hash,
    };
    // Two forms for one record would let a node hash the one and show the other.
    if !reader.bytes.is_empty() || record.canonical() != bytes {
        return Err(Unreadable("they are not in canonical form".to_owned()));
    }
    Ok(record)
}

/// Why bytes are no record that this program knows.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(String);

impl de::Error for Unreadable {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Unreadable(message.to_string())
    }
}

struct Reader<'de> {
    bytes: &'de [u8],
}

impl<'de> Reader<'de> {
    fn take(&mut self, count: usize) -> Result<&'de [u8], Unreadable> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(count)
            .ok_or_else(|| Unreadable("they end too early".to_owned()))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn length(&mut self) -> Result<usize, Unreadable> {
        let length = u64::from_le_bytes(self.array()?);
        usize::try_from(length).map_err(|_| Unreadable(format!("a length of {length}")))
    }

    fn flag(&mut self) -> Result<bool, Unreadable> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(Unreadable(format!("{other} where 0 or 1 stands"))),
        }
    }

    fn text(&mut self) -> Result<&'de str, Unreadable> {
        let length = self.length()?;
        std::str::from_utf8(self.take(length)?)
            .map_err(|_| Unreadable("a text that is not UTF-8".to_owned()))
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $number:ty),*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
            visitor.$visit(<$number>::from_le_bytes(self.array()?))
        })*
    };
}

/// What no record holds, or what nobody could read without knowing the type.
macro_rules! never {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Unreadable> {
            Err(Unreadable(concat!("no record is read by ", stringify!($method)).to_owned()))
        })*
    };
}

impl<'de> de::Deserializer<'de> for &mut Reader<'de> {
    type Error = Unreadable;

    numbers!(
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64, deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64, deserialize_u128 visit_u128 u128
    );
    never!(deserialize_any deserialize_f32 deserialize_f64 deserialize_char deserialize_map
        deserialize_identifier deserialize_ignored_any);

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
        visitor.visit_bool(self.flag()?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
        visitor.visit_borrowed_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
        let length = self.length()?;
        visitor.visit_borrowed_bytes(self.take(length)?)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
        if self.flag()? {
            visitor.visit_some(self)
        } else {
            visitor.visit_none()
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Unreadable> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Unreadable> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
        let left = self.length()?;
        visitor.visit_seq(Parts { reader: self, left })
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        left: usize,
        visitor: V,
    ) -> Result<V::Value, Unreadable> {
        visitor.visit_seq(Parts { reader: self, left })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        left: usize,
        visitor: V,
    ) -> Result<V::Value, Unreadable> {
        visitor.visit_seq(Parts { reader: self, left })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unreadable> {
        let left = fields.len();
        visitor.visit_seq(Parts { reader: self, left })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unreadable> {
        visitor.visit_enum(Variant { reader: self })
    }

    fn is_human_readable(&self) -> bool {
        // As the form's writer is by serde's default.
        true
    }
}

/// So many values, one after the other.
struct Parts<'a, 'de> {
    reader: &'a mut Reader<'de>,
    left: usize,
}

impl<'de> de::SeqAccess<'de> for Parts<'_, 'de> {
    type Error = Unreadable;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Unreadable> {
        let Some(left) = self.left.checked_sub(1) else {
            return Ok(None);
        };
        self.left = left;
        seed.deserialize(&mut *self.reader).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        // No value is shorter than a byte: a length beyond what is there reserves nothing.
        Some(self.left.min(self.reader.bytes.len()))
    }
}

struct Variant<'a, 'de> {
    reader: &'a mut Reader<'de>,
}

impl<'de> de::EnumAccess<'de> for Variant<'_, 'de> {
    type Error = Unreadable;
    type Variant = Self;

    fn variant_seed<T: DeserializeSeed<'de>>(
        self,
        seed: T,
    ) -> Result<(T::Value, Self), Unreadable> {
        let index = u32::from_le_bytes(self.reader.array()?);
        let number: de::value::U32Deserializer<Unreadable> = index.into_deserializer();
        Ok((seed.deserialize(number)?, self))
    }
}

impl<'de> de::VariantAccess<'de> for Variant<'_, 'de> {
    type Error = Unreadable;

    fn unit_variant(self) -> Result<(), Unreadable> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(
        self,
        seed: T,
    ) -> Result<T::Value, Unreadable> {
        seed.deserialize(self.reader)
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        left: usize,
        visitor: V,
    ) -> Result<V::Value, Unreadable> {
        visitor.visit_seq(Parts {
            reader: self.reader,
            left,
        })
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unreadable> {
        visitor.visit_seq(Parts {
            reader: self.reader,
            left: fields.len(),
        })
    }
}

/// The canonical bytes of one record of each shape.
#[cfg(test)]
pub(crate) fn every_kind() -> Vec<Vec<u8>> {
    tests::kinds()
        .into_iter()
        .map(|what| tests::record_of(what, Some("inv-7")).canonical())
        .collect()
}

#[cfg(test)]
mod tests {
    use billing_core::{
        Actor, AmountMinor, CHAIN_START, Charged, ClusterTime, Finality, HolderId, IdempotencyKey,
        InvoiceId, ReviewReason, SessionId, Verdict, WallTime, What,
    };

    use super::*;

    pub(super) fn record_of(what: What, invoice: Option<&str>) -> AuditRecord {
        AuditRecord {
            index: 7,
            at: ClusterTime(1_000),
            wall: WallTime(1_795_366_800_000),
            actor: Actor::new("worker-1").expect("a name"),
            what,
            invoice: invoice.map(|id| InvoiceId::new(id).expect("an id")),
            token: billing_core::FencingToken(u64::MAX),
            key: invoice.map(|_| IdempotencyKey::parse("demo.1.inv-7").expect("a key")),
            hash: CHAIN_START,
        }
    }

    fn text<T: std::str::FromStr<Err: fmt::Debug>>(text: &str) -> T {
        text.parse().expect("within its bounds")
    }

    /// One of each shape: bare, with texts, numbers, flags, ids, options, and enums inside.
    pub(super) fn kinds() -> Vec<What> {
        let session = SessionId::new([0xab; 16]);
        vec![
            What::Begun,
            What::Failed,
            What::Bootstrapped {
                ledger_id: text("demo"),
                no_prior_charges: true,
            },
            What::Acquired {
                session,
                holder: HolderId::new("ana@desk").expect("a name"),
            },
            What::SessionExpired { session },
            What::Submitted {
                customer: text("cus-0042"),
                amount: AmountMinor::new(1_250).expect("a sum"),
                currency: "EUR".to_owned().try_into().expect("a currency"),
            },
            What::Requeued { reason: None },
            What::Requeued {
                reason: Some(text("card renewed")),
            },
            What::Declined {
                code: text("card_declined"),
                retryable: false,
                finality: Finality::SoleSend,
                proven: true,
            },
            What::Pending {
                expected_by: WallTime(1),
            },
            What::Resolved {
                verdict: Verdict::NotCharged,
                evidence: text("dashboard"),
            },
            What::Resolved {
                verdict: Verdict::Charged(Charged {
                    reference: text("pi_1"),
                    amount: Some(AmountMinor::new(125).expect("a sum")),
                    currency: None,
                }),
                evidence: text("dashboard"),
            },
            What::PutInReview {
                reason: ReviewReason::OtherSum,
            },
        ]
    }

    #[test]
    fn what_was_hashed_is_read_back_whole() {
        for what in kinds() {
            for invoice in [None, Some("inv-7")] {
                let written = record_of(what.clone(), invoice);
                let read = record(&written.canonical(), CHAIN_START).expect("it was just written");
                assert_eq!(read, written);
            }
        }
    }

    #[test]
    fn bytes_that_are_short_long_or_otherwise_wrong_are_no_record() {
        for what in kinds() {
            let bytes = record_of(what, Some("inv-7")).canonical();
            for end in 0..bytes.len() {
                assert!(record(&bytes[..end], CHAIN_START).is_err(), "cut at {end}");
            }
            let longer = [bytes.as_slice(), &[0]].concat();
            assert!(record(&longer, CHAIN_START).is_err());
            // A flipped bit is another record or none: never the same, and never a panic.
            for nth in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[nth / 8] ^= 1 << (nth % 8);
                if let Ok(read) = record(&flipped, CHAIN_START) {
                    assert_eq!(read.canonical(), flipped);
                }
            }
        }
    }
}
