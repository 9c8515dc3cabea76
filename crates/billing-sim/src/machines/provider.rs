//! Decides how the payment provider lives in a simulated world: the sandbox's own code, books and misbehaviour, and a tap on
//! each connection, so that the trace says what the provider heard and when. Its machine never crashes: its books are the
//! witness.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use billing_env::{BoxIo, Net};
use billing_sandbox::{Faults, Settings, Witness, serve_connection};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Machine, PROVIDER_PORT};
use crate::net::SimNet;
use crate::record::Record;

/// The provider's machine and what stands behind the wire.
pub struct ProviderHost {
    pub machine: Machine,
    witness: Witness,
}

impl ProviderHost {
    pub fn new(machine: Machine, settings: Settings) -> anyhow::Result<ProviderHost> {
        let witness = Witness::new(machine.env(), settings)?;
        Ok(ProviderHost { machine, witness })
    }

    /// What was charged, by the provider's own books.
    pub fn books(&self) -> Books {
        Books::from(self.witness.books())
    }

    pub fn set_faults(&self, faults: Faults) {
        self.witness.set_faults(faults);
    }

    pub fn forget_keys(&self) -> usize {
        self.witness.forget_keys()
    }

    pub async fn run(self: Arc<ProviderHost>) -> turmoil::Result {
        let net = SimNet(self.machine.clock.clone());
        let mut listener = net.listen(&format!("0.0.0.0:{PROVIDER_PORT}")).await?;
        loop {
            let (io, from) = listener.accept().await?;
            let from = turmoil::reverse_lookup(from.ip()).unwrap_or_default();
            let tapped = Tap {
                io,
                from,
                record: self.machine.record.clone(),
            };
            tokio::spawn(serve_connection(Box::new(tapped), self.witness.clone()));
        }
    }
}

/// The books of one moment.
#[derive(Default)]
pub struct Books(Value);

/// One charge in the books.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub id: String,
    pub amount: u64,
    pub succeeded: bool,
}

impl From<Value> for Books {
    fn from(told: Value) -> Books {
        Books(told)
    }
}

impl Books {
    /// What moved money, with its invoice.
    pub fn charges(&self) -> Vec<(String, Row)> {
        let invoices = self.invoices().into_iter();
        let charged = invoices.flat_map(|(invoice, rows)| {
            let rows = rows.into_iter().filter(|row| row.succeeded);
            rows.map(move |row| (invoice.clone(), row))
        });
        charged.collect()
    }

    /// Every charge on the invoice, oldest first.
    pub fn of(&self, invoice: &str) -> Vec<Row> {
        let rows = self.0["invoices"][invoice].as_array();
        rows.into_iter()
            .flatten()
            .map(|row| Row {
                id: row[0].as_str().unwrap_or_default().to_owned(),
                amount: row[1].as_u64().unwrap_or_default(),
                succeeded: row[3] == "succeeded",
            })
            .collect()
    }

    /// Every invoice that the books know, with its charges.
    pub fn invoices(&self) -> Vec<(String, Vec<Row>)> {
        let invoices = self.0["invoices"].as_object();
        invoices
            .into_iter()
            .flatten()
            .map(|(invoice, _)| (invoice.clone(), self.of(invoice)))
            .collect()
    }
}

/// A connection that is listened in on.
struct Tap {
    io: BoxIo,
    from: String,
    record: Record,
}

impl Tap {
    /// Requests are small and come in one piece, so a piece that begins like one is one.
    fn hear(&self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            return;
        };
        let mut lines = head.lines();
        let Some(request) = lines.next().and_then(|line| line.rsplit_once(" HTTP/")) else {
            return;
        };
        let key = lines.find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("idempotency-key")
                .then(|| value.trim())
        });
        // What moves money goes under this suffix (DESIGN §2).
        if let Some(key) = key.and_then(|key| key.strip_suffix(":confirm")) {
            self.record.sent(&self.from, key);
        }
        let invoice = form_value(body, "metadata%5Binvoice_id%5D").unwrap_or_default();
        self.record.note(format_args!(
            "provider hears {} from {} key={} {invoice}",
            request.0,
            self.from,
            key.unwrap_or("none")
        ));
    }
}

fn form_value<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    body.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key == name).then_some(value)
    })
}

impl AsyncRead for Tap {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        if let Poll::Ready(Ok(())) = &polled {
            self.hear(&buffer.filled()[before..]);
        }
        polled
    }
}

impl AsyncWrite for Tap {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
