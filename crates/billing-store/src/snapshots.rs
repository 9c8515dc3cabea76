//! Decides how a snapshot lies on the disk and when it counts. It is written under a temporary name, synced, renamed, and the
//! folder synced; only then is it listed. Whatever fails a check is set aside and never offered again.
//!
//! A file is a row of frames, `length | record`: one head (index, serial, the caller's meta), chunks whose number is part of
//! what their checksum covers, and one end (bytes, chunks, checksum of the whole), which lies at a known distance from the end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};

use crate::codec::{
    self, Fields, KIND_SNAPSHOT, KIND_SNAPSHOT_CHUNK, KIND_SNAPSHOT_END, Seed, Unsealed,
};
use crate::files::Files;
use crate::{
    Pending, SNAPSHOT_CHUNK_BYTES, SNAPSHOT_META_BYTES_MAX, SNAPSHOTS_KEPT, SnapshotId,
    SnapshotInfo, SnapshotReader, SnapshotStore, SnapshotSum, SnapshotWriter, StoreError,
};

const SUFFIX: &str = ".snap";
const SUFFIX_TEMPORARY: &str = ".tmp";
/// The last one that failed a check is kept under this name, for study.
const SET_ASIDE: &str = "damaged";

const KEY_HEAD: &[u8] = b"head";
const KEY_END: &[u8] = b"end";
const ENVELOPE_BYTES: usize = 6;
const END_FRAME_BYTES: u64 = (4 + ENVELOPE_BYTES + 8 + 8 + 4) as u64;
const FRAME_BYTES_MAX: usize = SNAPSHOT_META_BYTES_MAX + 1024;
const _: () = assert!(SNAPSHOT_CHUNK_BYTES + ENVELOPE_BYTES < FRAME_BYTES_MAX);

fn chunk_key(id: SnapshotId, number: u64) -> Vec<u8> {
    let mut key = b"chunk".to_vec();
    for part in [id.index, id.serial, number] {
        key.extend_from_slice(&part.to_be_bytes());
    }
    key
}

fn frame(record: &[u8]) -> Vec<u8> {
    let mut frame = (record.len() as u32).to_le_bytes().to_vec();
    frame.extend_from_slice(record);
    frame
}

pub(crate) fn file_name(id: SnapshotId) -> String {
    format!("{id}{SUFFIX}")
}

pub(crate) fn parse_name(name: &str) -> Option<SnapshotId> {
    let (index, serial) = name.strip_suffix(SUFFIX)?.split_once('-')?;
    let id = SnapshotId {
        index: index.parse().ok()?,
        serial: serial.parse().ok()?,
    };
    (file_name(id) == name).then_some(id)
}

/// The snapshots of one folder, over whatever kind of folder.
pub(crate) struct Snapshots<F: Files> {
    inner: Arc<Inner<F>>,
}

struct Inner<F: Files> {
    files: Arc<F>,
    seed: Seed,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Newest first.
    listed: Vec<SnapshotInfo>,
    damaged: Vec<StoreError>,
    serial_next: u64,
}

/// Reports kept; more than this many damaged snapshots in one life of a process say nothing new.
const DAMAGED_REPORTS_MAX: usize = 16;

impl<F: Files> Inner<F> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn damaged(&self, id: SnapshotId, what: &str) -> StoreError {
        StoreError::SnapshotDamaged {
            what: what.to_owned(),
            where_: self.files.place(&file_name(id)),
        }
    }

    fn open_record<'a>(
        &self,
        id: SnapshotId,
        key: &[u8],
        kind: u8,
        record: &'a [u8],
    ) -> Result<&'a [u8], StoreError> {
        match codec::unseal(self.seed, key, kind, record) {
            Unsealed::Body(body) => Ok(body),
            Unsealed::Damaged(what) => Err(self.damaged(id, what)),
            Unsealed::Newer(found) => Err(StoreError::NewerFormat {
                where_: self.files.place(&file_name(id)),
                found,
                reads: codec::FORMAT,
            }),
        }
    }

    /// The frame at `offset`, and where the next begins.
    fn read_frame(
        &self,
        id: SnapshotId,
        handle: &F::Handle,
        offset: u64,
    ) -> Result<(Vec<u8>, u64), StoreError> {
        let cut_short = || self.damaged(id, "the file is cut short");
        let length = self
            .files
            .read_at(handle, offset, 4)?
            .ok_or_else(cut_short)?;
        let length = Fields(&length).u32().map_or(0, |length| length as usize);
        if length > FRAME_BYTES_MAX {
            return Err(self.damaged(id, "a length is beyond every bound"));
        }
        let record = self
            .files
            .read_at(handle, offset + 4, length)?
            .ok_or_else(cut_short)?;
        Ok((record, offset + 4 + length as u64))
    }

    /// Head and end of a file, verified, and where its chunks begin and end.
    fn read_info(
        &self,
        id: SnapshotId,
        handle: &F::Handle,
    ) -> Result<(SnapshotInfo, u64, u64), StoreError> {
        let (record, chunks_begin) = self.read_frame(id, handle, 0)?;
        let mut head = Fields(self.open_record(id, KEY_HEAD, KIND_SNAPSHOT, &record)?);
        let parsed = (|| {
            Some((
                SnapshotId {
                    index: head.u64()?,
                    serial: head.u64()?,
                },
                Bytes::copy_from_slice(head.last()?),
            ))
        })();
        let (stored_id, meta) = parsed.ok_or_else(|| self.damaged(id, "its head is cut short"))?;
        if stored_id != id {
            return Err(self.damaged(id, "its head is that of another snapshot"));
        }
        let length = self.files.length(handle)?;
        let chunks_end = length
            .checked_sub(END_FRAME_BYTES)
            .filter(|end| *end >= chunks_begin);
        let chunks_end = chunks_end.ok_or_else(|| self.damaged(id, "the file is cut short"))?;
        let (record, _) = self.read_frame(id, handle, chunks_end)?;
        let mut end = Fields(self.open_record(id, KEY_END, KIND_SNAPSHOT_END, &record)?);
        let parsed = (|| Some((end.u64()?, end.u64()?, end.u32()?)))();
        let (bytes, stored_index, crc32c) =
            parsed.ok_or_else(|| self.damaged(id, "its end is cut short"))?;
        if stored_index != id.index {
            return Err(self.damaged(id, "its end is that of another snapshot"));
        }
        Ok((
            SnapshotInfo {
                id,
                meta,
                sum: SnapshotSum { bytes, crc32c },
            },
            chunks_begin,
            chunks_end,
        ))
    }

    fn open(&self, id: SnapshotId) -> Result<Reading<F::Handle>, StoreError> {
        let handle = self.files.open(&file_name(id))?;
        let handle = handle.ok_or_else(|| StoreError::NoSnapshot { id: id.to_string() })?;
        let (info, offset, chunks_end) = self.read_info(id, &handle)?;
        Ok(Reading {
            info,
            handle,
            offset,
            chunks_end,
            number: 0,
            sum: SnapshotSum {
                bytes: 0,
                crc32c: 0,
            },
        })
    }

    fn read_chunk(&self, reading: &mut Reading<F::Handle>) -> Result<Option<Bytes>, StoreError> {
        let id = reading.info.id;
        if reading.offset == reading.chunks_end {
            if reading.sum != reading.info.sum {
                return Err(self.damaged(id, "its chunks are not all there"));
            }
            return Ok(None);
        }
        let (record, next) = self.read_frame(id, &reading.handle, reading.offset)?;
        if next > reading.chunks_end {
            return Err(self.damaged(id, "a chunk reaches beyond its place"));
        }
        let body = self.open_record(
            id,
            &chunk_key(id, reading.number),
            KIND_SNAPSHOT_CHUNK,
            &record,
        )?;
        let chunk = Bytes::copy_from_slice(body);
        reading.offset = next;
        reading.number += 1;
        reading.sum.bytes += chunk.len() as u64;
        reading.sum.crc32c = crc32c::crc32c_append(reading.sum.crc32c, &chunk);
        Ok(Some(chunk))
    }

    /// Takes a damaged snapshot out of the way, and remembers why.
    fn set_aside(&self, id: SnapshotId, error: &StoreError) {
        tracing::error!(%error, "a snapshot is set aside");
        if let Err(error) = self.files.rename(&file_name(id), SET_ASIDE) {
            tracing::warn!(%error, "it stays under its name, unlisted");
        }
        let mut state = self.state();
        state.listed.retain(|info| info.id != id);
        if state.damaged.len() < DAMAGED_REPORTS_MAX {
            state.damaged.push(error.clone());
        }
    }

    fn checked<T>(&self, id: SnapshotId, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error @ StoreError::SnapshotDamaged { .. }) = &outcome {
            self.set_aside(id, error);
        }
        outcome
    }

    fn finish(
        &self,
        writing: &mut Writing<F::Handle>,
        expected: Option<SnapshotSum>,
    ) -> Result<SnapshotInfo, StoreError> {
        let id = writing.id;
        if let Some(expected) = expected
            && expected != writing.sum
        {
            let what = format!(
                "{} bytes arrived with another checksum than the {} that were sent",
                writing.sum.bytes, expected.bytes
            );
            return Err(self.damaged(id, &what));
        }
        let mut end = codec::begin(KIND_SNAPSHOT_END);
        end.extend_from_slice(&writing.sum.bytes.to_le_bytes());
        end.extend_from_slice(&id.index.to_le_bytes());
        end.extend_from_slice(&writing.sum.crc32c.to_le_bytes());
        let end = frame(&codec::seal(self.seed, KEY_END, end));
        assert_eq!(
            end.len() as u64,
            END_FRAME_BYTES,
            "readers find the end by its length"
        );
        self.files.append(&mut writing.handle, &end)?;
        if !sabotaged!(SnapshotNotSynced) {
            self.files.sync(&writing.handle)?;
        }
        self.files.rename(&temporary_name(id), &file_name(id))?;
        self.files.sync_folder()?;
        Ok(SnapshotInfo {
            id,
            meta: writing.meta.clone(),
            sum: writing.sum,
        })
    }

    fn list_and_prune(&self, info: SnapshotInfo) -> Vec<SnapshotId> {
        let mut state = self.state();
        state.listed.push(info);
        state.listed.sort_by_key(|info| std::cmp::Reverse(info.id));
        let kept = state.listed.len().min(SNAPSHOTS_KEPT);
        state
            .listed
            .split_off(kept)
            .into_iter()
            .map(|info| info.id)
            .collect()
    }
}

fn temporary_name(id: SnapshotId) -> String {
    format!("{id}{SUFFIX_TEMPORARY}")
}

impl<F: Files> Snapshots<F> {
    /// Lists what is whole, sets aside what is not, removes what was never finished.
    pub(crate) fn open(files: F, seed: Seed) -> Result<Self, StoreError> {
        let inner = Arc::new(Inner {
            files: Arc::new(files),
            seed,
            state: Mutex::default(),
        });
        let mut listed = Vec::new();
        let mut serial_next = 1;
        for name in inner.files.names()? {
            if name.ends_with(SUFFIX_TEMPORARY) {
                inner.files.remove(&name)?;
                continue;
            }
            let Some(id) = parse_name(&name) else {
                continue;
            };
            serial_next = serial_next.max(id.serial.saturating_add(1));
            match inner.open(id) {
                Ok(reading) => listed.push(reading.info),
                Err(error @ StoreError::SnapshotDamaged { .. }) => inner.set_aside(id, &error),
                Err(error) => return Err(error),
            }
        }
        listed.sort_by_key(|info| std::cmp::Reverse(info.id));
        let kept = listed.len().min(SNAPSHOTS_KEPT);
        for info in listed.split_off(kept) {
            inner.files.remove(&file_name(info.id))?;
        }
        {
            let mut state = inner.state();
            state.listed = listed;
            state.serial_next = serial_next;
        }
        Ok(Self { inner })
    }
}

impl<F: Files> SnapshotStore for Snapshots<F> {
    fn list(&self) -> Vec<SnapshotInfo> {
        self.inner.state().listed.clone()
    }

    fn damaged(&self) -> Vec<StoreError> {
        self.inner.state().damaged.clone()
    }

    fn create(&self, index: u64, meta: Bytes) -> Pending<'_, Box<dyn SnapshotWriter>> {
        Box::pin(async move {
            if meta.len() > SNAPSHOT_META_BYTES_MAX {
                return Err(StoreError::misuse(format!(
                    "meta has {} bytes, the bound is {SNAPSHOT_META_BYTES_MAX}",
                    meta.len()
                )));
            }
            let serial = {
                let mut state = self.inner.state();
                state.serial_next += 1;
                state.serial_next - 1
            };
            let id = SnapshotId { index, serial };
            let inner = Arc::clone(&self.inner);
            let writing = inner.files.clone();
            let writing = writing.run(move |files| {
                let mut head = codec::begin(KIND_SNAPSHOT);
                head.extend_from_slice(&id.index.to_le_bytes());
                head.extend_from_slice(&id.serial.to_le_bytes());
                head.extend_from_slice(&(meta.len() as u32).to_le_bytes());
                head.extend_from_slice(&meta);
                let mut handle = files.create(&temporary_name(id))?;
                files.append(
                    &mut handle,
                    &frame(&codec::seal(inner.seed, KEY_HEAD, head)),
                )?;
                Ok(Writing {
                    id,
                    meta,
                    handle,
                    number: 0,
                    sum: SnapshotSum {
                        bytes: 0,
                        crc32c: 0,
                    },
                })
            });
            let writing = writing.await?;
            let writer = ChunkWriter {
                inner: Arc::clone(&self.inner),
                id,
                writing: Some(writing),
                buffer: BytesMut::new(),
            };
            Ok(Box::new(writer) as Box<dyn SnapshotWriter>)
        })
    }

    fn read(&self, id: SnapshotId) -> Pending<'_, Box<dyn SnapshotReader>> {
        Box::pin(async move {
            let inner = Arc::clone(&self.inner);
            let reading = self
                .inner
                .files
                .run(move |_| inner.checked(id, inner.open(id)))
                .await?;
            let info = reading.info.clone();
            Ok(Box::new(ChunkReader {
                inner: Arc::clone(&self.inner),
                info,
                reading: Some(reading),
            }) as Box<dyn SnapshotReader>)
        })
    }

    fn verify(&self, id: SnapshotId) -> Pending<'_, ()> {
        Box::pin(async move {
            let mut reader = self.read(id).await?;
            while reader.next().await?.is_some() {}
            Ok(())
        })
    }
}

struct Writing<H> {
    id: SnapshotId,
    meta: Bytes,
    handle: H,
    number: u64,
    sum: SnapshotSum,
}

struct ChunkWriter<F: Files> {
    inner: Arc<Inner<F>>,
    id: SnapshotId,
    /// `None` while a step is under way, and after one that failed or was abandoned.
    writing: Option<Writing<F::Handle>>,
    buffer: BytesMut,
}

const ABANDONED: &str = "the snapshot's writer was abandoned or failed before";

impl<F: Files> ChunkWriter<F> {
    async fn write_chunk(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        let mut writing = self
            .writing
            .take()
            .ok_or_else(|| StoreError::misuse(ABANDONED))?;
        let seed = self.inner.seed;
        let step = self.inner.files.run(move |files| {
            let key = chunk_key(writing.id, writing.number);
            files.append(
                &mut writing.handle,
                &frame(&codec::seal_body(seed, &key, KIND_SNAPSHOT_CHUNK, &chunk)),
            )?;
            writing.number += 1;
            writing.sum.bytes += chunk.len() as u64;
            writing.sum.crc32c = crc32c::crc32c_append(writing.sum.crc32c, &chunk);
            Ok(writing)
        });
        self.writing = Some(step.await?);
        Ok(())
    }
}

impl<F: Files> SnapshotWriter for ChunkWriter<F> {
    fn write(&mut self, mut piece: Bytes) -> Pending<'_, ()> {
        Box::pin(async move {
            while !piece.is_empty() {
                let room = SNAPSHOT_CHUNK_BYTES - self.buffer.len();
                self.buffer
                    .extend_from_slice(&piece.split_to(room.min(piece.len())));
                if self.buffer.len() == SNAPSHOT_CHUNK_BYTES {
                    let chunk = self.buffer.split().freeze();
                    self.write_chunk(chunk).await?;
                }
            }
            Ok(())
        })
    }

    fn finish(
        mut self: Box<Self>,
        expected: Option<SnapshotSum>,
    ) -> Pending<'static, SnapshotInfo> {
        Box::pin(async move {
            if !self.buffer.is_empty() {
                let chunk = self.buffer.split().freeze();
                self.write_chunk(chunk).await?;
            }
            let mut writing = self
                .writing
                .take()
                .ok_or_else(|| StoreError::misuse(ABANDONED))?;
            let inner = Arc::clone(&self.inner);
            let step = self.inner.files.run(move |files| {
                let info = inner.finish(&mut writing, expected)?;
                for old in inner.list_and_prune(info.clone()) {
                    files.remove(&file_name(old))?;
                }
                Ok(info)
            });
            step.await
        })
    }
}

impl<F: Files> Drop for ChunkWriter<F> {
    fn drop(&mut self) {
        // After `finish` there is nothing under that name any more.
        if let Err(error) = self.inner.files.remove(&temporary_name(self.id)) {
            tracing::warn!(%error, "an unfinished snapshot stays until the next start");
        }
    }
}

struct Reading<H> {
    info: SnapshotInfo,
    handle: H,
    offset: u64,
    chunks_end: u64,
    number: u64,
    sum: SnapshotSum,
}

struct ChunkReader<F: Files> {
    inner: Arc<Inner<F>>,
    info: SnapshotInfo,
    /// `None` while a step is under way, and after one that failed or was abandoned.
    reading: Option<Reading<F::Handle>>,
}

impl<F: Files> SnapshotReader for ChunkReader<F> {
    fn info(&self) -> &SnapshotInfo {
        &self.info
    }

    fn next(&mut self) -> Pending<'_, Option<Bytes>> {
        Box::pin(async move {
            let mut reading = self.reading.take().ok_or_else(|| {
                StoreError::misuse("the snapshot's reader was abandoned or failed before")
            })?;
            let inner = Arc::clone(&self.inner);
            let step = self.inner.files.run(move |_| {
                let outcome = inner.read_chunk(&mut reading);
                let chunk = inner.checked(reading.info.id, outcome)?;
                Ok((chunk, reading))
            });
            let (chunk, reading) = step.await?;
            self.reading = Some(reading);
            Ok(chunk)
        })
    }
}

/// A snapshot file as the writer lays it, of chunks as long as they are given.
#[cfg(test)]
pub(crate) fn write_whole(seed: Seed, id: SnapshotId, meta: &[u8], chunks: &[Vec<u8>]) -> Vec<u8> {
    let mut head = codec::begin(KIND_SNAPSHOT);
    head.extend_from_slice(&id.index.to_le_bytes());
    head.extend_from_slice(&id.serial.to_le_bytes());
    head.extend_from_slice(&(meta.len() as u32).to_le_bytes());
    head.extend_from_slice(meta);
    let mut file = frame(&codec::seal(seed, KEY_HEAD, head));
    for (number, chunk) in chunks.iter().enumerate() {
        let key = chunk_key(id, number as u64);
        file.extend(frame(&codec::seal_body(
            seed,
            &key,
            KIND_SNAPSHOT_CHUNK,
            chunk,
        )));
    }
    let contents = chunks.concat();
    let mut end = codec::begin(KIND_SNAPSHOT_END);
    end.extend_from_slice(&(contents.len() as u64).to_le_bytes());
    end.extend_from_slice(&id.index.to_le_bytes());
    end.extend_from_slice(&crc32c::crc32c(&contents).to_le_bytes());
    file.extend(frame(&codec::seal(seed, KEY_END, end)));
    file
}

/// Meta and contents of a snapshot, read to its end.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_whole<F: Files>(
    store: &Snapshots<F>,
    id: SnapshotId,
) -> Result<(Bytes, Vec<u8>), StoreError> {
    let mut reading = store.inner.open(id)?;
    let mut contents = Vec::new();
    while let Some(chunk) = store.inner.read_chunk(&mut reading)? {
        contents.extend_from_slice(&chunk);
    }
    Ok((reading.info.meta, contents))
}

/// Puts the checksum of every frame right, as far as there are frames.
#[cfg(any(test, fuzzing))]
pub(crate) fn put_right(seed: Seed, id: SnapshotId, file: &mut [u8]) {
    let (mut at, mut nth) = (0, 0);
    while let Some(length) = file.get(at..at + 4).and_then(|head| Fields(head).u32()) {
        let end = (at + 4).saturating_add(length as usize);
        let last = end == file.len();
        let Some(record) = file.get_mut(at + 4..end).filter(|record| record.len() > 6) else {
            return;
        };
        let key = match nth {
            0 => KEY_HEAD.to_vec(),
            _ if last => KEY_END.to_vec(),
            nth => chunk_key(id, nth - 1),
        };
        let sealed = codec::seal(seed, &key, record.to_vec());
        record.copy_from_slice(&sealed);
        (at, nth) = (end, nth + 1);
    }
}
