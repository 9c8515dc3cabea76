//! What single calls leave to the background: giving back leases that nobody knows of any more. Decides nothing; counts, so
//! that a process which is about to exit can wait for it.

use std::{future::Future, time::Duration};

use tokio::{runtime::Handle, sync::watch};

use crate::{Client, calls::within};

#[derive(Debug, Default)]
pub(crate) struct Background(watch::Sender<Count>);

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    under_way: usize,
    /// Given up: the lease may stand until its TTL.
    left: usize,
}

impl Client {
    /// Runs `chore` behind the caller's back. It says whether nothing is held any more.
    pub(crate) fn behind(
        &self,
        runtime: &Handle,
        chore: impl Future<Output = bool> + Send + 'static,
    ) {
        let count = &self.inner.background.0;
        count.send_modify(|count| count.under_way += 1);
        let client = self.clone();
        runtime.spawn(async move {
            let done = chore.await;
            client.inner.background.0.send_modify(|count| {
                count.under_way -= 1;
                count.left += usize::from(!done);
            });
        });
    }

    /// Waits, `limit` at most, until nothing is being given back in the background any more: leases of guards without a session
    /// that were dropped, acquires without one whose answer was lost. For a process that is about to exit, since its
    /// background ends with it. False: something was not given back, and stands until its TTL.
    pub async fn given_back(&self, limit: Duration) -> bool {
        let mut count = self.inner.background.0.subscribe();
        let settled = count.wait_for(|count| count.under_way == 0);
        match within(&*self.inner.env.clock, limit, settled).await {
            Some(Ok(count)) => count.left == 0,
            Some(Err(_)) | None => false,
        }
    }
}
