//! Decides nothing: carries the wish to stop from whoever hears a signal to the run.

use tokio::sync::watch;

/// Says stop, once.
#[derive(Debug)]
pub struct Stopper(watch::Sender<bool>);

/// Hears it.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

impl Stopper {
    pub fn new() -> (Stopper, Stop) {
        let (sender, receiver) = watch::channel(false);
        (Stopper(sender), Stop(receiver))
    }

    /// Claim nothing more; finish or give back what is at hand.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    pub fn is_wished(&self) -> bool {
        *self.0.borrow()
    }

    /// Completes once it is wished; never when the stopper is gone without a word.
    pub async fn wished(&mut self) {
        if self.0.wait_for(|wished| *wished).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
