//! Decides what the log needs from what lies below it: ordered keys, atomic batches, a sync, and the two slots of the `high`
//! file. Two media exist: sled's, and the simulated one. Never decides what is written when: that is `writer.rs`.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;

use crate::StoreError;
use crate::high::SLOTS;

/// Changes that become durable together at the next sync, and readable by then or later. `None` removes.
pub(crate) type Batch = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Reading side, shared by the writer and by readers of old entries.
pub(crate) trait Pages: Send + Sync + 'static {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Up to `limit` records whose keys lie in `from..to`, in order.
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Bytes)>, StoreError>;

    /// The record with the largest key in `from..=to`.
    fn last_in(&self, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>, StoreError>;

    /// Whether reading may wait for a real disk.
    fn blocks(&self) -> bool;
}

/// Writing side, owned by the one writer.
pub(crate) trait Medium: Send + 'static {
    fn pages(&self) -> &dyn Pages;

    /// Names the place in messages.
    fn name(&self) -> &str;

    fn apply(&mut self, batch: Batch) -> Result<(), StoreError>;

    /// Everything applied so far is on the medium once this resolves.
    fn sync(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Everything synced so far can be read on the medium once this returns.
    fn settle(&mut self) -> Result<(), StoreError>;

    fn read_high(&self) -> Result<[Vec<u8>; SLOTS], StoreError>;

    fn write_high(&mut self, slot: usize, record: &[u8]) -> Result<(), StoreError>;

    fn sync_high(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// The last call in an orderly life, when everything is synced: leaves as little as possible to whoever opens it next.
    fn close(&mut self) -> Result<(), StoreError>;

    /// Monotonic, from any origin.
    fn now(&self) -> Duration;
}
