//! A caller that never retries: one connection per request, and the bare answer.

use std::time::Duration;

use billing_env::Env;
use billing_sandbox::{Faults, Sandbox, Settings};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;

pub const VISA: &str = "payment_method=pm_card_visa";

pub struct Caller {
    pub sandbox: Sandbox,
    pub auth: Option<String>,
}

#[derive(Debug)]
pub struct Heard {
    pub status: StatusCode,
    pub replayed: bool,
    pub body: Value,
}

impl Heard {
    pub fn text(&self, path: &str) -> &str {
        self.body
            .pointer(path)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }
}

impl Caller {
    pub async fn of(settings: Settings) -> Caller {
        let sandbox = Sandbox::start(Env::real(), settings, "127.0.0.1:0")
            .await
            .expect("a free port on loopback");
        Caller {
            sandbox,
            auth: Some("Bearer sk_test_sandbox".to_owned()),
        }
    }

    pub async fn with_faults(faults: Faults) -> Caller {
        Caller::of(Settings {
            faults,
            ..Settings::default()
        })
        .await
    }

    /// None: the connection ended without an answer.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        key: Option<&str>,
        body: &str,
    ) -> Option<Heard> {
        let stream = tokio::net::TcpStream::connect(self.sandbox.local_addr())
            .await
            .ok()?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .ok()?;
        let driver = tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "sandbox")
            .header("content-type", "application/x-www-form-urlencoded");
        if let Some(auth) = &self.auth {
            request = request.header("authorization", auth);
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let request = request
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
            .expect("a request");
        let response = sender.send_request(request).await.ok()?;
        let status = response.status();
        let replayed = response
            .headers()
            .get("idempotent-replayed")
            .is_some_and(|value| value == "true");
        let body = response.into_body().collect().await.ok()?.to_bytes();
        driver.abort();
        Some(Heard {
            status,
            replayed,
            body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        })
    }

    pub async fn post(&self, path: &str, key: Option<&str>, body: &str) -> Heard {
        self.send("POST", path, key, body).await.expect("an answer")
    }

    pub async fn get(&self, path: &str) -> Heard {
        self.send("GET", path, None, "").await.expect("an answer")
    }

    /// A PaymentIntent of 1500 usd for an invoice, created and not confirmed.
    pub async fn intent(&self, invoice: &str) -> String {
        let body = format!("amount=1500&currency=usd&metadata[invoice_id]={invoice}");
        let heard = self.post("/v1/payment_intents", None, &body).await;
        assert_eq!(
            heard.text("/status"),
            "requires_payment_method",
            "{heard:?}"
        );
        heard.text("/id").to_owned()
    }

    pub async fn confirm(&self, intent: &str, key: Option<&str>, body: &str) -> Heard {
        self.post(&format!("/v1/payment_intents/{intent}/confirm"), key, body)
            .await
    }

    /// Statuses of an invoice's charges in the books, oldest first.
    pub async fn booked(&self, invoice: &str) -> Vec<String> {
        let books = self.get("/_config/books").await.body;
        let rows = books["invoices"][invoice]
            .as_array()
            .cloned()
            .unwrap_or_default();
        rows.iter()
            .map(|row| row[3].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// Waits until the books of an invoice are as told, for a few seconds at most.
    pub async fn await_booked(&self, invoice: &str, wanted: &[&str]) {
        let waited = tokio::time::timeout(Duration::from_secs(10), async {
            while self.booked(invoice).await != wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(
            waited.await.is_ok(),
            "{invoice}: {:?}, never {wanted:?}",
            self.booked(invoice).await
        );
    }
}
