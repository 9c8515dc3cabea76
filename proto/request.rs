//! Reads requests as commands of the ledger. Every bound of the wire is checked here and named when it is missed; ids that a
//! client may leave out are drawn by the server and passed in. Decides nothing about state.

use billing_core::{
    AcquireLease, AllowCharges, AttachProviderObject, BeginCharge, CancelInvoice, ClaimInvoices,
    ClaimMax, CloseSession, Evidence, FencingToken, ForceRelease, HolderId, IdempotencyKey,
    InvoiceId, KeepAlive, ObjectId, OpenSession, OutOfBounds, Outcome, PauseProvider, ProviderId,
    ReleaseLease, RenewLease, RequestId, Requester, RequeueInvoice, ResolveCharge, Seq, SessionId,
    SettleCharge, SubmitInvoice, TtlMs, Verdict, WaitMs, limits,
};

use crate::{
    convert::{charged_from_wire, terms_or_manual},
    v1::{self, resolve_charge_request as resolve},
};

/// Rows of one page when a client does not say: enough for a screen, cheap to answer.
pub const PAGE_SIZE_DEFAULT: usize = 100;
/// Items of one AcquireLeases, ReleaseLeases or RenewLeases: one Raft entry's worth.
pub const ITEMS_MAX: usize = 1_000;

/// `drawn`: the session's id if the client leaves it to the server.
pub fn open_session(
    request: &v1::OpenSessionRequest,
    drawn: [u8; 16],
) -> Result<OpenSession, OutOfBounds> {
    Ok(OpenSession {
        session: session_id(&request.session_id, drawn)?,
        holder: HolderId::new(&request.holder)?,
        ttl: TtlMs::new(request.ttl_ms)?,
    })
}

fn session_id(bytes: &[u8], drawn: [u8; 16]) -> Result<SessionId, OutOfBounds> {
    if bytes.is_empty() {
        Ok(SessionId::new(drawn))
    } else {
        SessionId::from_slice(bytes)
    }
}

/// `drawn` draws the request's id if there is neither a session nor a request_id.
pub fn acquire_lease(
    request: &v1::AcquireLeaseRequest,
    drawn: impl FnOnce() -> [u8; 16],
) -> Result<AcquireLease, OutOfBounds> {
    let requester = if request.session_id.is_empty() {
        let id = &request.request_id;
        Requester::Implicit {
            request: if id.is_empty() {
                RequestId::new(drawn())
            } else {
                RequestId::from_slice(id)?
            },
            holder: HolderId::new(&request.holder)?,
            ttl: TtlMs::new(request.ttl_ms)?,
        }
    } else {
        Requester::Session {
            session: SessionId::from_slice(&request.session_id)?,
            seq: Seq::new(request.seq)?,
            done_below: request.done_below,
            ttl: ttl_or_none(request.ttl_ms)?,
        }
    };
    Ok(AcquireLease {
        invoice: InvoiceId::new(&request.invoice_id)?,
        requester,
        wait: WaitMs::new(request.wait_ms)?,
    })
}

fn ttl_or_none(ttl_ms: u64) -> Result<Option<TtlMs>, OutOfBounds> {
    if ttl_ms == 0 {
        Ok(None)
    } else {
        TtlMs::new(ttl_ms).map(Some)
    }
}

impl TryFrom<&v1::KeepAliveRequest> for KeepAlive {
    type Error = OutOfBounds;
    fn try_from(request: &v1::KeepAliveRequest) -> Result<KeepAlive, OutOfBounds> {
        Ok(KeepAlive {
            session: SessionId::from_slice(&request.session_id)?,
        })
    }
}

impl TryFrom<&v1::CloseSessionRequest> for CloseSession {
    type Error = OutOfBounds;
    fn try_from(request: &v1::CloseSessionRequest) -> Result<CloseSession, OutOfBounds> {
        Ok(CloseSession {
            session: SessionId::from_slice(&request.session_id)?,
        })
    }
}

impl TryFrom<&v1::ReleaseLeaseRequest> for ReleaseLease {
    type Error = OutOfBounds;
    fn try_from(request: &v1::ReleaseLeaseRequest) -> Result<ReleaseLease, OutOfBounds> {
        match (request.invoice_id.is_empty(), request.session_id.is_empty()) {
            (false, true) => Ok(ReleaseLease::ByToken {
                invoice: InvoiceId::new(&request.invoice_id)?,
                token: token(request.token)?,
            }),
            (true, false) => Ok(ReleaseLease::BySeq {
                session: SessionId::from_slice(&request.session_id)?,
                seq: Seq::new(request.seq)?,
            }),
            (true, true) | (false, false) => Err(OutOfBounds::new(
                "invoice_id",
                "given with token, or else session_id with seq, and not both",
            )),
        }
    }
}

fn token(token: u64) -> Result<FencingToken, OutOfBounds> {
    if token == 0 {
        return Err(OutOfBounds::new(
            "token",
            "above zero, as AcquireLease returned it",
        ));
    }
    Ok(FencingToken(token))
}

impl TryFrom<&v1::RenewLeaseRequest> for RenewLease {
    type Error = OutOfBounds;
    fn try_from(request: &v1::RenewLeaseRequest) -> Result<RenewLease, OutOfBounds> {
        Ok(RenewLease {
            invoice: InvoiceId::new(&request.invoice_id)?,
            token: token(request.token)?,
            ttl: ttl_or_none(request.ttl_ms)?,
        })
    }
}

impl TryFrom<&v1::ClaimInvoicesRequest> for ClaimInvoices {
    type Error = OutOfBounds;
    fn try_from(request: &v1::ClaimInvoicesRequest) -> Result<ClaimInvoices, OutOfBounds> {
        Ok(ClaimInvoices {
            session: SessionId::from_slice(&request.session_id)?,
            seq: Seq::new(request.seq)?,
            done_below: request.done_below,
            max: ClaimMax::new(request.max.into())?,
        })
    }
}

impl TryFrom<v1::SubmitInvoicesRequest> for SubmitInvoice {
    type Error = OutOfBounds;
    fn try_from(request: v1::SubmitInvoicesRequest) -> Result<SubmitInvoice, OutOfBounds> {
        request
            .invoice
            .ok_or(OutOfBounds::new("invoice", "set"))?
            .try_into()
    }
}

impl TryFrom<&v1::CancelInvoiceRequest> for CancelInvoice {
    type Error = OutOfBounds;
    fn try_from(request: &v1::CancelInvoiceRequest) -> Result<CancelInvoice, OutOfBounds> {
        Ok(CancelInvoice {
            invoice: InvoiceId::new(&request.invoice_id)?,
            reason: reason_or_none(&request.reason)?,
        })
    }
}

impl TryFrom<&v1::RequeueInvoiceRequest> for RequeueInvoice {
    type Error = OutOfBounds;
    fn try_from(request: &v1::RequeueInvoiceRequest) -> Result<RequeueInvoice, OutOfBounds> {
        Ok(RequeueInvoice {
            invoice: InvoiceId::new(&request.invoice_id)?,
            reason: reason_or_none(&request.reason)?,
        })
    }
}

fn reason_or_none(reason: &str) -> Result<Option<Evidence>, OutOfBounds> {
    if reason.is_empty() {
        Ok(None)
    } else {
        evidence(reason, "reason").map(Some)
    }
}

/// Text for the audit log, refused under the name that the request gives it.
fn evidence(text: &str, field: &'static str) -> Result<Evidence, OutOfBounds> {
    Evidence::new(text).map_err(|out| OutOfBounds {
        field: field.into(),
        bound: out.bound,
    })
}

impl TryFrom<v1::BeginChargeRequest> for BeginCharge {
    type Error = OutOfBounds;
    fn try_from(request: v1::BeginChargeRequest) -> Result<BeginCharge, OutOfBounds> {
        Ok(BeginCharge {
            invoice: InvoiceId::new(&request.invoice_id)?,
            token: token(request.token)?,
            terms: terms_or_manual(request.terms)?,
        })
    }
}

impl TryFrom<&v1::AttachProviderObjectRequest> for AttachProviderObject {
    type Error = OutOfBounds;
    fn try_from(
        request: &v1::AttachProviderObjectRequest,
    ) -> Result<AttachProviderObject, OutOfBounds> {
        Ok(AttachProviderObject {
            invoice: InvoiceId::new(&request.invoice_id)?,
            token: token(request.token)?,
            object: ObjectId::new(&request.object)?,
        })
    }
}

impl TryFrom<v1::SettleChargeRequest> for SettleCharge {
    type Error = OutOfBounds;
    fn try_from(request: v1::SettleChargeRequest) -> Result<SettleCharge, OutOfBounds> {
        let outcome = request.outcome.ok_or(OutOfBounds::new("outcome", "set"))?;
        Ok(SettleCharge {
            invoice: InvoiceId::new(&request.invoice_id)?,
            // Zero: a webhook without a lease; the ledger takes facts about money from it and nothing else.
            token: FencingToken(request.token),
            key: IdempotencyKey::parse(&request.idempotency_key)?,
            outcome: Outcome::try_from(outcome)?,
        })
    }
}

impl TryFrom<v1::ResolveChargeRequest> for ResolveCharge {
    type Error = OutOfBounds;
    fn try_from(request: v1::ResolveChargeRequest) -> Result<ResolveCharge, OutOfBounds> {
        Ok(ResolveCharge {
            invoice: InvoiceId::new(&request.invoice_id)?,
            key: IdempotencyKey::parse(&request.idempotency_key)?,
            verdict: match request
                .word
                .ok_or(OutOfBounds::new("word", "charged or not_charged"))?
            {
                resolve::Word::Charged(resolve::Charged {
                    reference,
                    amount_minor,
                    currency,
                }) => Verdict::Charged(charged_from_wire(&reference, amount_minor, &currency)?),
                resolve::Word::NotCharged(resolve::NotCharged {}) => Verdict::NotCharged,
            },
            evidence: evidence(&request.evidence, "evidence")?,
        })
    }
}

impl TryFrom<&v1::ForceReleaseRequest> for ForceRelease {
    type Error = OutOfBounds;
    fn try_from(request: &v1::ForceReleaseRequest) -> Result<ForceRelease, OutOfBounds> {
        Ok(ForceRelease {
            invoice: InvoiceId::new(&request.invoice_id)?,
            reason: evidence(&request.reason, "reason")?,
        })
    }
}

impl TryFrom<&v1::PauseProviderRequest> for PauseProvider {
    type Error = OutOfBounds;
    fn try_from(request: &v1::PauseProviderRequest) -> Result<PauseProvider, OutOfBounds> {
        Ok(PauseProvider {
            provider: ProviderId::new(&request.provider)?,
            paused: request.paused,
            reason: evidence(&request.reason, "reason")?,
        })
    }
}

impl TryFrom<&v1::AllowChargesRequest> for AllowCharges {
    type Error = OutOfBounds;
    fn try_from(request: &v1::AllowChargesRequest) -> Result<AllowCharges, OutOfBounds> {
        Ok(AllowCharges {
            evidence: evidence(&request.evidence, "evidence")?,
        })
    }
}

/// Rows of a page; 0: the default.
pub fn page_size(asked: u32) -> Result<usize, OutOfBounds> {
    match asked as usize {
        0 => Ok(PAGE_SIZE_DEFAULT),
        rows if rows <= limits::PAGE_MAX => Ok(rows),
        _ => Err(OutOfBounds::new("page_size", "1..=1000, or 0 for 100")),
    }
}

/// Refuses a batch that is larger than what one call may carry.
pub fn items(count: usize) -> Result<(), OutOfBounds> {
    if count > ITEMS_MAX {
        return Err(OutOfBounds::new("items", "at most 1000"));
    }
    Ok(())
}
