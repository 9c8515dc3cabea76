//! Decides nothing: what snapshots need from a folder, and the real folder. Every call may block.

use std::fs::{self, File};
use std::future::Future;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::StoreError;
use crate::folder::{self, FolderLock};

/// A flat folder of files that are written once, from front to back.
pub(crate) trait Files: Send + Sync + 'static {
    type Handle: Send + 'static;

    /// Sorted.
    fn names(&self) -> Result<Vec<String>, StoreError>;
    /// A new file, or an emptied one.
    fn create(&self, name: &str) -> Result<Self::Handle, StoreError>;
    /// For reading. The handle stays good when the file is renamed or removed. `None`: no such file.
    fn open(&self, name: &str) -> Result<Option<Self::Handle>, StoreError>;
    fn append(&self, handle: &mut Self::Handle, bytes: &[u8]) -> Result<(), StoreError>;
    fn sync(&self, handle: &Self::Handle) -> Result<(), StoreError>;
    fn length(&self, handle: &Self::Handle) -> Result<u64, StoreError>;
    /// `None`: the file ends before.
    fn read_at(
        &self,
        handle: &Self::Handle,
        offset: u64,
        length: usize,
    ) -> Result<Option<Vec<u8>>, StoreError>;
    /// Replaces what is there.
    fn rename(&self, from: &str, to: &str) -> Result<(), StoreError>;
    fn remove(&self, name: &str) -> Result<(), StoreError>;
    /// Names are durable once this returns.
    fn sync_folder(&self) -> Result<(), StoreError>;
    /// For messages.
    fn place(&self, name: &str) -> String;

    /// Does `work` where it may block.
    fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> impl Future<Output = Result<T, StoreError>> + Send;
}

pub(crate) struct FolderFiles {
    folder: PathBuf,
    _lock: Arc<FolderLock>,
}

impl FolderFiles {
    pub(crate) fn new(folder: PathBuf, lock: Arc<FolderLock>) -> Self {
        Self {
            folder,
            _lock: lock,
        }
    }

    fn error(&self, doing: &'static str, name: &str, error: std::io::Error) -> StoreError {
        StoreError::io(doing, &self.folder.join(name), error)
    }
}

impl Files for FolderFiles {
    type Handle = File;

    fn names(&self) -> Result<Vec<String>, StoreError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(|error| self.error("reading", "", error))? {
            let entry = entry.map_err(|error| self.error("reading", "", error))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn create(&self, name: &str) -> Result<File, StoreError> {
        File::create(self.folder.join(name)).map_err(|error| self.error("creating", name, error))
    }

    fn open(&self, name: &str) -> Result<Option<File>, StoreError> {
        match File::open(self.folder.join(name)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error("opening", name, error)),
        }
    }

    fn append(&self, handle: &mut File, bytes: &[u8]) -> Result<(), StoreError> {
        handle
            .write_all(bytes)
            .map_err(|error| self.error("writing a snapshot in", "", error))
    }

    fn sync(&self, handle: &File) -> Result<(), StoreError> {
        handle
            .sync_all()
            .map_err(|error| self.error("syncing a snapshot in", "", error))
    }

    fn length(&self, handle: &File) -> Result<u64, StoreError> {
        let metadata = handle
            .metadata()
            .map_err(|error| self.error("reading a snapshot in", "", error))?;
        Ok(metadata.len())
    }

    fn read_at(
        &self,
        handle: &File,
        offset: u64,
        length: usize,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let mut bytes = vec![0; length];
        match handle.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(self.error("reading a snapshot in", "", error)),
        }
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        fs::rename(self.folder.join(from), self.folder.join(to))
            .map_err(|error| self.error("renaming", from, error))
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        match fs::remove_file(self.folder.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(self.error("removing", name, error))
            }
            _ => Ok(()),
        }
    }

    fn sync_folder(&self) -> Result<(), StoreError> {
        folder::sync_folder(&self.folder)
    }

    fn place(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let files = Arc::clone(self);
        match tokio::task::spawn_blocking(move || work(&files)).await {
            Ok(outcome) => outcome,
            // Only when the runtime goes down: nobody will use the answer.
            Err(_) => Err(StoreError::Closed),
        }
    }
}
