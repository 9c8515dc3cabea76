//! The backup file: a row of `BackupResponse` messages, each with its length before it. Decides what is a whole backup and
//! what is not; writes, reads and verifies one, a chunk at a time. Decides nothing about what becomes of the ledger inside.
//!
//! One header, chunks in order without a gap, one trailer. Each chunk has its CRC; the trailer's BLAKE3 covers the header and
//! every byte, so that no two good halves make a whole.

use std::io::{self, BufReader, Read, Seek, Write};

use billing_core::{BadSnapshot, Ledger};
use prost::Message;

use crate::v1::{BackupChunk, BackupHeader, BackupResponse, BackupTrailer, backup_response::Part};

/// Of the file. A reader refuses a newer one; 1 is the first.
pub const FORMAT: u32 = 1;
/// Bytes of the ledger in one message.
pub const CHUNK_BYTES_MAX: usize = 1024 * 1024;
/// No message is longer: the rest is a header of short texts, or a few numbers.
const MESSAGE_BYTES_MAX: u64 = CHUNK_BYTES_MAX as u64 + 4096;
const HASH_BYTES: usize = 32;

/// Why a file or a stream is not a whole backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("this is not a backup, or its beginning is damaged: {0}")]
    NotABackup(&'static str),
    #[error(
        "the backup has format {found}, and this program reads up to {FORMAT}: use a newer version of it"
    )]
    Newer { found: u32 },
    #[error(
        "the backup is cut short: it ends after {bytes} bytes of the ledger, without its trailer"
    )]
    CutShort { bytes: u64 },
    /// `at`: how many bytes of the ledger were good.
    #[error("the backup is damaged {at} bytes into the ledger: {what}")]
    Damaged { at: u64, what: &'static str },
    /// Whole, and yet not what a cluster makes.
    #[error("the ledger in the backup cannot be used: {0}")]
    Ledger(BadSnapshot),
    #[error("the ledger in the backup is not the one that its header names")]
    OtherLedger,
    #[error("the backup cannot be read: {0}")]
    Io(#[from] io::Error),
}

impl From<BackupError> for io::Error {
    fn from(error: BackupError) -> io::Error {
        match error {
            BackupError::Io(error) => error,
            other => io::Error::new(io::ErrorKind::InvalidData, other),
        }
    }
}

/// What is in a backup that was found whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Whole {
    pub header: BackupHeader,
    /// Of the encoded ledger.
    pub bytes: u64,
    /// Of header and content: names this very backup.
    pub blake3: [u8; HASH_BYTES],
}

/// Makes the messages of one backup.
pub struct Composer {
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Composer {
    /// The first message. `header.format` is set here.
    pub fn begin(mut header: BackupHeader) -> (Composer, BackupResponse) {
        header.format = FORMAT;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&header.encode_to_vec());
        (Composer { hasher, bytes: 0 }, part(Part::Header(header)))
    }

    /// The next bytes, at most [`CHUNK_BYTES_MAX`] of them.
    pub fn chunk(&mut self, bytes: Vec<u8>) -> BackupResponse {
        assert!(bytes.len() <= CHUNK_BYTES_MAX, "readers refuse longer ones");
        self.hasher.update(&bytes);
        let offset = self.bytes;
        self.bytes += bytes.len() as u64;
        part(Part::Chunk(BackupChunk {
            offset,
            crc32c: crc32c::crc32c(&bytes),
            bytes,
        }))
    }

    /// The last message.
    pub fn end(self) -> BackupResponse {
        part(Part::Trailer(BackupTrailer {
            bytes: self.bytes,
            blake3: self.hasher.finalize().as_bytes().to_vec(),
        }))
    }
}

fn part(part: Part) -> BackupResponse {
    BackupResponse { part: Some(part) }
}

/// Looks at the messages of one backup as they come by, and says at the first one that does not belong.
#[derive(Default)]
pub struct Checker {
    header: Option<BackupHeader>,
    hasher: blake3::Hasher,
    bytes: u64,
    sealed: Option<[u8; HASH_BYTES]>,
}

impl Checker {
    pub fn new() -> Checker {
        Checker::default()
    }

    /// Good bytes of the ledger so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Unset before the first message.
    pub fn header(&self) -> Option<&BackupHeader> {
        self.header.as_ref()
    }

    /// The next message, in order.
    pub fn take(&mut self, message: &BackupResponse) -> Result<(), BackupError> {
        let at = self.bytes;
        let damaged = |what| Err(BackupError::Damaged { at, what });
        if self.sealed.is_some() {
            return damaged("something follows its trailer");
        }
        match (&message.part, self.header.is_some()) {
            (Some(Part::Header(header)), false) => {
                check_header(header)?;
                self.hasher.update(&header.encode_to_vec());
                self.header = Some(header.clone());
            }
            (_, false) => {
                return Err(BackupError::NotABackup("it does not begin with a header"));
            }
            (Some(Part::Header(_)), true) => return damaged("a second header stands in it"),
            (Some(Part::Chunk(chunk)), true) => {
                if chunk.offset != at {
                    return damaged("a piece is missing, or stands in the wrong place");
                }
                if chunk.bytes.len() > CHUNK_BYTES_MAX {
                    return damaged("a piece is longer than any is");
                }
                if crc32c::crc32c(&chunk.bytes) != chunk.crc32c {
                    return damaged("a checksum does not match");
                }
                self.hasher.update(&chunk.bytes);
                self.bytes += chunk.bytes.len() as u64;
            }
            (Some(Part::Trailer(trailer)), true) => {
                let sum = *self.hasher.finalize().as_bytes();
                if trailer.bytes != at {
                    return damaged("its trailer names another length");
                }
                if trailer.blake3 != sum {
                    return damaged("its trailer names another sum");
                }
                self.sealed = Some(sum);
            }
            (None, true) => return damaged("a message says nothing"),
        }
        Ok(())
    }

    /// After the last message.
    pub fn finish(self) -> Result<Whole, BackupError> {
        let bytes = self.bytes;
        let header = self.header.ok_or(BackupError::NotABackup("it is empty"))?;
        let blake3 = self.sealed.ok_or(BackupError::CutShort { bytes })?;
        Ok(Whole {
            header,
            bytes,
            blake3,
        })
    }
}

fn check_header(header: &BackupHeader) -> Result<(), BackupError> {
    if header.format > FORMAT {
        return Err(BackupError::Newer {
            found: header.format,
        });
    }
    if header.format == 0 || header.ledger_id.is_empty() || header.state_hash.len() != HASH_BYTES {
        return Err(BackupError::NotABackup("its header is incomplete"));
    }
    Ok(())
}

/// Writes one message with its length.
pub fn write(to: &mut impl Write, message: &BackupResponse) -> io::Result<()> {
    to.write_all(&message.encode_length_delimited_to_vec())
}

/// Reads a backup's messages from a file. Every byte that comes out was compared with its checksum; that the whole is whole
/// is known when [`Reader::next_chunk`] said `None`.
pub struct Reader<R> {
    from: R,
    checker: Checker,
    header: BackupHeader,
    /// What [`Read`] has not handed out yet.
    chunk: io::Cursor<Vec<u8>>,
}

impl<R: Read> Reader<R> {
    /// Reads the header. Buffer `from`: it is read in small pieces between large ones.
    pub fn open(mut from: R) -> Result<Reader<R>, BackupError> {
        let mut checker = Checker::new();
        // Whatever stands at the beginning of a foreign file is no damage.
        let first = read(&mut from, 0).map_err(|error| match error {
            BackupError::Damaged { what, .. } => BackupError::NotABackup(what),
            BackupError::CutShort { .. } => BackupError::NotABackup("it ends too early"),
            other => other,
        })?;
        let first = first.ok_or(BackupError::NotABackup("it is empty"))?;
        checker.take(&first)?;
        let header = checker.header().cloned();
        let header = header.ok_or(BackupError::NotABackup("it does not begin with a header"))?;
        Ok(Reader {
            from,
            checker,
            header,
            chunk: io::Cursor::default(),
        })
    }

    pub fn header(&self) -> &BackupHeader {
        &self.header
    }

    /// The next bytes of the ledger; `None`: that was all, the trailer matches and the file ends there.
    pub fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, BackupError> {
        let Some(message) = read(&mut self.from, self.checker.bytes())? else {
            return match self.checker.sealed {
                Some(_) => Ok(None),
                None => Err(BackupError::CutShort {
                    bytes: self.checker.bytes(),
                }),
            };
        };
        self.checker.take(&message)?;
        match message.part {
            Some(Part::Chunk(chunk)) => Ok(Some(chunk.bytes)),
            // Behind it nothing may follow.
            Some(Part::Header(_) | Part::Trailer(_)) | None => self.next_chunk(),
        }
    }

    /// Reads what is left, and says what it was.
    pub fn finish(mut self) -> Result<Whole, BackupError> {
        while self.next_chunk()?.is_some() {}
        self.checker.finish()
    }
}

/// The ledger's bytes. A damaged backup shows as [`io::ErrorKind::InvalidData`] around a [`BackupError`].
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.chunk.read(into)?;
            if read > 0 || into.is_empty() {
                return Ok(read);
            }
            match self.next_chunk()? {
                Some(chunk) => self.chunk = io::Cursor::new(chunk),
                None => return Ok(0),
            }
        }
    }
}

/// Verifies all of it: first every byte, then the ledger inside, its invariants, its audit chain, and that it hashes to what
/// the header says. `progress` hears how many bytes are done, of twice the file's content.
pub fn verify(
    from: &mut (impl Read + Seek),
    mut progress: impl FnMut(u64),
) -> Result<(Whole, Ledger), BackupError> {
    from.rewind()?;
    let mut reader = Reader::open(BufReader::new(&mut *from))?;
    while reader.next_chunk()?.is_some() {
        progress(reader.checker.bytes());
    }
    let whole = reader.finish()?;
    from.rewind()?;
    let mut reader = Reader::open(BufReader::new(&mut *from))?;
    let ledger = {
        let mut told = Told {
            from: &mut reader,
            bytes: whole.bytes,
            progress: &mut progress,
        };
        Ledger::read_from(&mut told).map_err(ledger_error)?
    };
    // Another pass over another file would be another backup.
    let again = reader.finish()?;
    let ledger_id = ledger.ledger_id().map(ToString::to_string);
    if again != whole
        || ledger.state_hash() != whole.header.state_hash[..]
        || ledger_id.as_deref() != Some(&*whole.header.ledger_id)
    {
        return Err(BackupError::OtherLedger);
    }
    Ok((whole, ledger))
}

/// A damaged file was damaged while the ledger was read: its own words count.
fn ledger_error(error: BadSnapshot) -> BackupError {
    match error {
        BadSnapshot::Io(error) => match error.downcast::<BackupError>() {
            Ok(own) => own,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                BackupError::Ledger(BadSnapshot::Torn("it ends too early".to_owned()))
            }
            Err(error) => BackupError::Io(error),
        },
        other => BackupError::Ledger(other),
    }
}

struct Told<'a, R, P> {
    from: &'a mut Reader<R>,
    bytes: u64,
    progress: &'a mut P,
}

impl<R: Read, P: FnMut(u64)> Read for Told<'_, R, P> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let before = self.from.checker.bytes();
        let read = self.from.read(into)?;
        let now = self.from.checker.bytes();
        if now > before {
            (self.progress)(self.bytes + now);
        }
        Ok(read)
    }
}

/// One message; `None` where the file ends between two. `at` is for the error.
fn read(from: &mut impl Read, at: u64) -> Result<Option<BackupResponse>, BackupError> {
    let cut = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => BackupError::CutShort { bytes: at },
        _ => BackupError::Io(error),
    };
    let Some(length) = read_length(from, at)? else {
        return Ok(None);
    };
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).map_err(cut)?;
    let damaged = |what| BackupError::Damaged { at, what };
    let message =
        BackupResponse::decode(&*bytes).map_err(|_| damaged("a message cannot be read"))?;
    // A flipped tag turns a field into one that nobody knows, which decoding passes over. A newer format is refused by its
    // number, not by its fields.
    let newer = matches!(&message.part, Some(Part::Header(header)) if header.format > FORMAT);
    if !newer && message.encode_to_vec() != bytes {
        return Err(damaged("a message holds what no writer wrote"));
    }
    Ok(Some(message))
}

fn read_length(from: &mut impl Read, at: u64) -> Result<Option<usize>, BackupError> {
    let mut length: u64 = 0;
    let mut shift = 0;
    loop {
        let mut byte = [0];
        match from.read(&mut byte) {
            Ok(0) if shift == 0 => return Ok(None),
            Ok(0) => return Err(BackupError::CutShort { bytes: at }),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        }
        length |= u64::from(byte[0] & 0x7f) << shift;
        if length > MESSAGE_BYTES_MAX {
            return Err(BackupError::Damaged {
                at,
                what: "a length is beyond every bound",
            });
        }
        if byte[0] & 0x80 == 0 {
            return Ok(usize::try_from(length).ok());
        }
        shift += 7;
        if shift > 21 {
            return Err(BackupError::Damaged {
                at,
                what: "a length is beyond every bound",
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> BackupHeader {
        BackupHeader {
            ledger_id: "demo".to_owned(),
            applied_index: 7,
            state_hash: vec![9; HASH_BYTES],
            ..BackupHeader::default()
        }
    }

    fn file(chunks: &[&[u8]]) -> Vec<u8> {
        let (mut composer, first) = Composer::begin(header());
        let mut messages = vec![first];
        messages.extend(chunks.iter().map(|bytes| composer.chunk(bytes.to_vec())));
        messages.push(composer.end());
        let mut file = Vec::new();
        for message in &messages {
            file.extend(message.encode_length_delimited_to_vec());
        }
        file
    }

    fn check(file: &[u8]) -> Result<Whole, BackupError> {
        Reader::open(file)?.finish()
    }

    #[test]
    fn what_was_written_is_read_back() -> Result<(), BackupError> {
        let file = file(&[b"seven", b"", b"eight"]);
        let mut content = String::new();
        let mut reader = Reader::open(&*file)?;
        reader.read_to_string(&mut content)?;
        assert_eq!(content, "seveneight");
        let whole = reader.finish()?;
        assert_eq!(whole.bytes, 10);
        assert_eq!(whole.header.format, FORMAT);
        assert_eq!(whole.header.applied_index, 7);
        Ok(())
    }

    #[test]
    fn no_flipped_bit_and_no_missing_byte_goes_unseen() {
        let good = file(&[b"seven", b"eight"]);
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(check(&bad).is_err(), "byte {at}, bit {bit}");
            }
            assert!(check(&good[..at]).is_err(), "cut to {at} bytes");
        }
        let mut longer = good.clone();
        longer.extend_from_slice(&good);
        assert!(check(&longer).is_err(), "two of them in a row");
    }

    #[test]
    fn what_is_wrong_is_said() -> Result<(), BackupError> {
        let good = file(&[b"seven", b"eight"]);
        let cut = check(&good[..good.len() - 1]).err();
        assert!(
            matches!(cut, Some(BackupError::CutShort { bytes: 10 })),
            "{cut:?}"
        );
        for foreign in [
            &b""[..],
            b"#!/bin/sh\nexit 0\n",
            b"\x7fELF\x02\x01",
            &[0xff; 64],
        ] {
            let told = check(foreign).err();
            assert!(
                matches!(told, Some(BackupError::NotABackup(_))),
                "{foreign:?}: {told:?}"
            );
        }
        let (mut composer, _) = Composer::begin(header());
        let newer = part(Part::Header(BackupHeader {
            format: FORMAT + 1,
            ..header()
        }));
        let told = check(&newer.encode_length_delimited_to_vec()).err();
        assert!(
            matches!(told, Some(BackupError::Newer { found: 2 })),
            "{told:?}"
        );
        let headless = composer
            .chunk(b"seven".to_vec())
            .encode_length_delimited_to_vec();
        assert!(matches!(check(&headless), Err(BackupError::NotABackup(_))));
        Ok(())
    }

    #[test]
    fn pieces_of_two_backups_make_no_backup() -> Result<(), BackupError> {
        let (mut one, first) = Composer::begin(header());
        let (mut other, _) = Composer::begin(BackupHeader {
            applied_index: 8,
            ..header()
        });
        let chunk = one.chunk(b"seven".to_vec());
        other.chunk(b"seven".to_vec());
        let mut checker = Checker::new();
        checker.take(&first)?;
        checker.take(&chunk)?;
        assert!(matches!(
            checker.take(&other.end()),
            Err(BackupError::Damaged { at: 5, .. })
        ));
        Ok(())
    }
}
