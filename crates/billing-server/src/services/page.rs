//! Decides how a list goes on where it stopped, and that no list holds up the ledger for longer than one page takes.
//! A token is opaque to clients: the last id shown, behind a version.

use billing_core::limits::PAGE_MAX;
use billing_core::{InvoiceId, Ledger, OutOfBounds};
use tonic::Status;

use super::{Door, Read};

const VERSION: &str = "1.";

/// Up to `rows` rows that are `wanted`, in order of id, from the first above `after`. Looks at a page at a time, and lets
/// applies pass in between: a filter that fits nothing may walk through everything.
pub async fn walk<T: Send>(
    door: &Door,
    stale_ok: bool,
    mut after: Option<InvoiceId>,
    rows: usize,
    look: impl Fn(&Ledger, Option<&InvoiceId>, usize) -> Vec<T> + Send + Sync,
    id: impl Fn(&T) -> &InvoiceId + Send + Sync,
    wanted: impl Fn(&T) -> bool + Send + Sync,
) -> Result<Read<Vec<T>>, Status> {
    let mut found = Vec::new();
    // What was read linearizably once is here from then on.
    let mut stale_ok = stale_ok;
    loop {
        let read = door
            .read(stale_ok, |ledger| look(ledger, after.as_ref(), rows))
            .await?;
        let (seen, applied_index) = (read.value.len(), read.applied_index);
        after = read.value.last().map(|last| id(last).clone());
        found.extend(read.value.into_iter().filter(&wanted));
        if found.len() >= rows || seen < rows.min(PAGE_MAX) {
            found.truncate(rows);
            return Ok(Read {
                value: found,
                applied_index,
            });
        }
        stale_ok = true;
        tokio::task::yield_now().await;
    }
}

/// The token of the page after the one that ended with `last`.
pub fn token_after(last: &InvoiceId) -> String {
    let hex: String = last
        .as_str()
        .bytes()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{VERSION}{hex}")
}

/// The token to go on with after `rows`; empty when fewer came than were asked for, so that there are no more.
pub fn next<T>(rows: &[T], asked: usize, id: impl Fn(&T) -> &InvoiceId) -> String {
    match rows.last() {
        Some(last) if rows.len() >= asked => token_after(id(last)),
        Some(_) | None => String::new(),
    }
}

/// Where the page of `token` begins: after this id. `None`: at the beginning.
pub fn read(token: &str) -> Result<Option<InvoiceId>, OutOfBounds> {
    if token.is_empty() {
        return Ok(None);
    }
    let wrong = || OutOfBounds::new("page_token", "empty, or as next_page_token returned it");
    let hex = token.strip_prefix(VERSION).ok_or_else(wrong)?.as_bytes();
    if !hex.len().is_multiple_of(2) {
        return Err(wrong());
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let bytes: Option<Vec<u8>> = hex
        .chunks(2)
        .map(|pair| Some((digit(pair[0])? << 4) | digit(pair[1])?))
        .collect();
    let id = String::from_utf8(bytes.ok_or_else(wrong)?).map_err(|_| wrong())?;
    InvoiceId::new(&id).map(Some).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_back_to_its_id_and_nothing_else_is_taken() -> Result<(), OutOfBounds> {
        let id = InvoiceId::new("inv-7/~")?;
        assert_eq!(read(&token_after(&id))?, Some(id));
        assert_eq!(read("")?, None);
        for wrong in ["inv-7", "1.", "1.6", "1.zz", "1.20", "2.6162", "1.é"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        Ok(())
    }
}
