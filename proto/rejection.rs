//! Carries every refusal of the ledger across the wire with its facts, and back. Decides nothing about codes or retries
//! (status.rs does); both directions are exhaustive, so a new variant does not compile until someone gives it a message.

use billing_core::{
    AttemptNumber, Bound, Evidence, FencingToken, HolderId, IdempotencyKey, InvoiceId, LedgerId,
    MembershipReason, ObjectId, OutOfBounds, ProviderId, Reference, Rejection, Seq, SessionId,
};

use crate::{
    convert::status_from_wire,
    v1::{self, rejection as wire, rejection::Reason},
};

impl From<&Rejection> for v1::Rejection {
    fn from(rejection: &Rejection) -> v1::Rejection {
        v1::Rejection {
            reason: Some(to_wire(rejection)),
        }
    }
}

fn to_wire(rejection: &Rejection) -> Reason {
    match rejection.clone() {
        Rejection::InvalidArgument { field, bound } => {
            Reason::InvalidArgument(wire::InvalidArgument {
                field: field.into_owned(),
                bound: bound.into_owned(),
            })
        }
        Rejection::SeqReused { seq } => Reason::SeqReused(wire::SeqReused { seq: seq.get() }),
        Rejection::SeqBelow { seq, done_below } => Reason::SeqBelow(wire::SeqBelow {
            seq: seq.get(),
            done_below,
        }),
        Rejection::NotBootstrapped => Reason::NotBootstrapped(wire::NotBootstrapped {}),
        Rejection::AlreadyBootstrapped { ledger_id } => {
            Reason::AlreadyBootstrapped(wire::AlreadyBootstrapped {
                ledger_id: ledger_id.to_string(),
            })
        }
        Rejection::SessionNotFound { session } => Reason::SessionNotFound(wire::SessionNotFound {
            session_id: session.as_bytes().to_vec(),
        }),
        Rejection::SessionEnded { session } => Reason::SessionEnded(wire::SessionEnded {
            session_id: session.as_bytes().to_vec(),
        }),
        Rejection::HeldByOther {
            invoice,
            holder,
            expires_in_ms,
        } => Reason::HeldByOther(wire::HeldByOther {
            invoice_id: invoice.to_string(),
            holder: holder.to_string(),
            remaining_ms: expires_in_ms,
        }),
        Rejection::StaleToken { presented, current } => Reason::StaleToken(wire::StaleToken {
            presented: presented.0,
            current: current.0,
        }),
        Rejection::LeaseExpired { invoice, token } => Reason::LeaseExpired(wire::LeaseExpired {
            invoice_id: invoice.to_string(),
            token: token.0,
        }),
        Rejection::LeaseEnded { invoice, token } => Reason::LeaseEnded(wire::LeaseEnded {
            invoice_id: invoice.to_string(),
            token: token.0,
        }),
        Rejection::ClaimEnded { seq } => Reason::ClaimEnded(wire::ClaimEnded { seq: seq.get() }),
        Rejection::NotLeasable { invoice, status } => Reason::NotLeasable(wire::NotLeasable {
            invoice_id: invoice.to_string(),
            status: v1::InvoiceStatus::from(status).into(),
        }),
        Rejection::GrantsNotYet { in_ms } => Reason::GrantsNotYet(wire::GrantsNotYet { in_ms }),
        Rejection::NotFound { invoice } => Reason::NotFound(wire::NotFound {
            invoice_id: invoice.to_string(),
        }),
        Rejection::NotSubmitted { invoice } => Reason::NotSubmitted(wire::NotSubmitted {
            invoice_id: invoice.to_string(),
        }),
        Rejection::SubmittedOtherwise {
            invoice,
            field,
            recorded,
            presented,
        } => Reason::SubmittedOtherwise(wire::SubmittedOtherwise {
            invoice_id: invoice.to_string(),
            field: field.into_owned(),
            recorded: recorded.into(),
            presented: presented.into(),
        }),
        Rejection::WrongStatus {
            invoice,
            status,
            wanted,
        } => Reason::WrongStatus(wire::WrongStatus {
            invoice_id: invoice.to_string(),
            status: v1::InvoiceStatus::from(status).into(),
            wanted: wanted.into_owned(),
        }),
        Rejection::AlreadyPaid { invoice, reference } => Reason::AlreadyPaid(wire::AlreadyPaid {
            invoice_id: invoice.to_string(),
            reference: reference.to_string(),
        }),
        Rejection::ChargeRecorded { invoice, reference } => {
            Reason::ChargeRecorded(wire::ChargeRecorded {
                invoice_id: invoice.to_string(),
                reference: reference.to_string(),
            })
        }
        Rejection::AttemptOpen { invoice, number } => Reason::AttemptOpen(wire::AttemptOpen {
            invoice_id: invoice.to_string(),
            number: number.get(),
        }),
        Rejection::NotDue { invoice, due_in_ms } => Reason::NotDue(wire::NotDue {
            invoice_id: invoice.to_string(),
            due_in_ms,
        }),
        Rejection::WrongTerms {
            invoice,
            field,
            recorded,
            presented,
        } => Reason::WrongTerms(wire::WrongTerms {
            invoice_id: invoice.to_string(),
            field: field.into_owned(),
            recorded: recorded.into(),
            presented: presented.into(),
        }),
        Rejection::Closing {
            invoice,
            number,
            look_up_in_ms,
        } => Reason::Closing(wire::Closing {
            invoice_id: invoice.to_string(),
            number: number.get(),
            look_up_in_ms,
        }),
        Rejection::NoOpenAttempt { invoice } => Reason::NoOpenAttempt(wire::NoOpenAttempt {
            invoice_id: invoice.to_string(),
        }),
        Rejection::WrongKey { invoice, presented } => Reason::WrongKey(wire::WrongKey {
            invoice_id: invoice.to_string(),
            presented: presented.to_string(),
        }),
        Rejection::ForeignKey {
            presented,
            ledger_id,
        } => Reason::ForeignKey(wire::ForeignKey {
            presented: presented.to_string(),
            ledger_id: ledger_id.to_string(),
        }),
        Rejection::OtherObject {
            invoice,
            presented,
            recorded,
        } => Reason::OtherObject(wire::OtherObject {
            invoice_id: invoice.to_string(),
            presented: presented.to_string(),
            recorded: recorded
                .map(|object| object.to_string())
                .unwrap_or_default(),
        }),
        Rejection::AttemptsUsedUp { invoice } => Reason::AttemptsUsedUp(wire::AttemptsUsedUp {
            invoice_id: invoice.to_string(),
        }),
        Rejection::TooEarly { invoice, in_ms } => Reason::TooEarly(wire::TooEarly {
            invoice_id: invoice.to_string(),
            in_ms,
        }),
        Rejection::ChargesNotAllowed => Reason::ChargesNotAllowed(wire::ChargesNotAllowed {}),
        Rejection::ClocksDisagree { apart_ms } => {
            Reason::ClocksDisagree(wire::ClocksDisagree { apart_ms })
        }
        Rejection::ProviderPaused { provider, reason } => {
            Reason::ProviderPaused(wire::ProviderPaused {
                provider: provider.to_string(),
                reason: reason.to_string(),
            })
        }
        Rejection::Overloaded { bound, max } => Reason::Overloaded(wire::Overloaded {
            bound: bound_to_wire(bound).into(),
            max,
        }),
        Rejection::IndexPurged { requested, oldest } => {
            Reason::IndexPurged(wire::IndexPurged { requested, oldest })
        }
        Rejection::MembershipRefused {
            node,
            reason,
            detail,
        } => Reason::MembershipRefused(wire::MembershipRefused {
            node_id: node,
            reason: membership_to_wire(reason).into(),
            detail,
        }),
    }
}

impl TryFrom<v1::Rejection> for Rejection {
    type Error = OutOfBounds;

    /// Refuses what this build does not know: a reason of a newer server, or facts outside their bounds.
    fn try_from(rejection: v1::Rejection) -> Result<Rejection, OutOfBounds> {
        from_wire(rejection.reason.ok_or(OutOfBounds::new(
            "rejection.reason",
            "one that this build knows",
        ))?)
    }
}

fn from_wire(reason: Reason) -> Result<Rejection, OutOfBounds> {
    Ok(match reason {
        Reason::InvalidArgument(wire::InvalidArgument { field, bound }) => {
            Rejection::InvalidArgument {
                field: field.into(),
                bound: bound.into(),
            }
        }
        Reason::SeqReused(wire::SeqReused { seq }) => Rejection::SeqReused {
            seq: Seq::new(seq)?,
        },
        Reason::SeqBelow(wire::SeqBelow { seq, done_below }) => Rejection::SeqBelow {
            seq: Seq::new(seq)?,
            done_below,
        },
        Reason::NotBootstrapped(wire::NotBootstrapped {}) => Rejection::NotBootstrapped,
        Reason::AlreadyBootstrapped(wire::AlreadyBootstrapped { ledger_id }) => {
            Rejection::AlreadyBootstrapped {
                ledger_id: LedgerId::new(&ledger_id)?,
            }
        }
        Reason::SessionNotFound(wire::SessionNotFound { session_id }) => {
            Rejection::SessionNotFound {
                session: SessionId::from_slice(&session_id)?,
            }
        }
        Reason::SessionEnded(wire::SessionEnded { session_id }) => Rejection::SessionEnded {
            session: SessionId::from_slice(&session_id)?,
        },
        Reason::HeldByOther(wire::HeldByOther {
            invoice_id,
            holder,
            remaining_ms,
        }) => Rejection::HeldByOther {
            invoice: InvoiceId::new(&invoice_id)?,
            holder: HolderId::new(&holder)?,
            expires_in_ms: remaining_ms,
        },
        Reason::StaleToken(wire::StaleToken { presented, current }) => Rejection::StaleToken {
            presented: FencingToken(presented),
            current: FencingToken(current),
        },
        Reason::LeaseExpired(wire::LeaseExpired { invoice_id, token }) => Rejection::LeaseExpired {
            invoice: InvoiceId::new(&invoice_id)?,
            token: FencingToken(token),
        },
        Reason::LeaseEnded(wire::LeaseEnded { invoice_id, token }) => Rejection::LeaseEnded {
            invoice: InvoiceId::new(&invoice_id)?,
            token: FencingToken(token),
        },
        Reason::ClaimEnded(wire::ClaimEnded { seq }) => Rejection::ClaimEnded {
            seq: Seq::new(seq)?,
        },
        Reason::NotLeasable(wire::NotLeasable { invoice_id, status }) => Rejection::NotLeasable {
            invoice: InvoiceId::new(&invoice_id)?,
            status: status_from_wire(status)?,
        },
        Reason::GrantsNotYet(wire::GrantsNotYet { in_ms }) => Rejection::GrantsNotYet { in_ms },
        Reason::NotFound(wire::NotFound { invoice_id }) => Rejection::NotFound {
            invoice: InvoiceId::new(&invoice_id)?,
        },
        Reason::NotSubmitted(wire::NotSubmitted { invoice_id }) => Rejection::NotSubmitted {
            invoice: InvoiceId::new(&invoice_id)?,
        },
        Reason::SubmittedOtherwise(wire::SubmittedOtherwise {
            invoice_id,
            field,
            recorded,
            presented,
        }) => Rejection::SubmittedOtherwise {
            invoice: InvoiceId::new(&invoice_id)?,
            field: field.into(),
            recorded: recorded.into(),
            presented: presented.into(),
        },
        Reason::WrongStatus(wire::WrongStatus {
            invoice_id,
            status,
            wanted,
        }) => Rejection::WrongStatus {
            invoice: InvoiceId::new(&invoice_id)?,
            status: status_from_wire(status)?,
            wanted: wanted.into(),
        },
        Reason::AlreadyPaid(wire::AlreadyPaid {
            invoice_id,
            reference,
        }) => Rejection::AlreadyPaid {
            invoice: InvoiceId::new(&invoice_id)?,
            reference: Reference::new(&reference)?,
        },
        Reason::ChargeRecorded(wire::ChargeRecorded {
            invoice_id,
            reference,
        }) => Rejection::ChargeRecorded {
            invoice: InvoiceId::new(&invoice_id)?,
            reference: Reference::new(&reference)?,
        },
        Reason::AttemptOpen(wire::AttemptOpen { invoice_id, number }) => Rejection::AttemptOpen {
            invoice: InvoiceId::new(&invoice_id)?,
            number: AttemptNumber::new(number.into())?,
        },
        Reason::NotDue(wire::NotDue {
            invoice_id,
            due_in_ms,
        }) => Rejection::NotDue {
            invoice: InvoiceId::new(&invoice_id)?,
            due_in_ms,
        },
        Reason::WrongTerms(wire::WrongTerms {
            invoice_id,
            field,
            recorded,
            presented,
        }) => Rejection::WrongTerms {
            invoice: InvoiceId::new(&invoice_id)?,
            field: field.into(),
            recorded: recorded.into(),
            presented: presented.into(),
        },
        Reason::Closing(wire::Closing {
            invoice_id,
            number,
            look_up_in_ms,
        }) => Rejection::Closing {
            invoice: InvoiceId::new(&invoice_id)?,
            number: AttemptNumber::new(number.into())?,
            look_up_in_ms,
        },
        Reason::NoOpenAttempt(wire::NoOpenAttempt { invoice_id }) => Rejection::NoOpenAttempt {
            invoice: InvoiceId::new(&invoice_id)?,
        },
        Reason::WrongKey(wire::WrongKey {
            invoice_id,
            presented,
        }) => Rejection::WrongKey {
            invoice: InvoiceId::new(&invoice_id)?,
            presented: IdempotencyKey::parse(&presented)?,
        },
        Reason::ForeignKey(wire::ForeignKey {
            presented,
            ledger_id,
        }) => Rejection::ForeignKey {
            presented: IdempotencyKey::parse(&presented)?,
            ledger_id: LedgerId::new(&ledger_id)?,
        },
        Reason::OtherObject(wire::OtherObject {
            invoice_id,
            presented,
            recorded,
        }) => Rejection::OtherObject {
            invoice: InvoiceId::new(&invoice_id)?,
            presented: ObjectId::new(&presented)?,
            recorded: if recorded.is_empty() {
                None
            } else {
                Some(ObjectId::new(&recorded)?)
            },
        },
        Reason::AttemptsUsedUp(wire::AttemptsUsedUp { invoice_id }) => Rejection::AttemptsUsedUp {
            invoice: InvoiceId::new(&invoice_id)?,
        },
        Reason::TooEarly(wire::TooEarly { invoice_id, in_ms }) => Rejection::TooEarly {
            invoice: InvoiceId::new(&invoice_id)?,
            in_ms,
        },
        Reason::ChargesNotAllowed(wire::ChargesNotAllowed {}) => Rejection::ChargesNotAllowed,
        Reason::ClocksDisagree(wire::ClocksDisagree { apart_ms }) => {
            Rejection::ClocksDisagree { apart_ms }
        }
        Reason::ProviderPaused(wire::ProviderPaused { provider, reason }) => {
            Rejection::ProviderPaused {
                provider: ProviderId::new(&provider)?,
                reason: Evidence::new(&reason)?,
            }
        }
        Reason::Overloaded(wire::Overloaded { bound, max }) => Rejection::Overloaded {
            bound: bound_from_wire(bound)?,
            max,
        },
        Reason::IndexPurged(wire::IndexPurged { requested, oldest }) => {
            Rejection::IndexPurged { requested, oldest }
        }
        Reason::MembershipRefused(wire::MembershipRefused {
            node_id,
            reason,
            detail,
        }) => Rejection::MembershipRefused {
            node: node_id,
            reason: membership_from_wire(reason)?,
            detail,
        },
    })
}

fn bound_to_wire(bound: Bound) -> wire::Bound {
    match bound {
        Bound::SessionsOpen => wire::Bound::SessionsOpen,
        Bound::LeasesPerSession => wire::Bound::LeasesPerSession,
        Bound::WaitersPerInvoice => wire::Bound::WaitersPerInvoice,
        Bound::WaitersPerSession => wire::Bound::WaitersPerSession,
        Bound::ProvidersPaused => wire::Bound::ProvidersPaused,
        Bound::ChargesPerInvoice => wire::Bound::ChargesPerInvoice,
    }
}

fn bound_from_wire(bound: i32) -> Result<Bound, OutOfBounds> {
    match wire::Bound::try_from(bound) {
        Ok(wire::Bound::SessionsOpen) => Ok(Bound::SessionsOpen),
        Ok(wire::Bound::LeasesPerSession) => Ok(Bound::LeasesPerSession),
        Ok(wire::Bound::WaitersPerInvoice) => Ok(Bound::WaitersPerInvoice),
        Ok(wire::Bound::WaitersPerSession) => Ok(Bound::WaitersPerSession),
        Ok(wire::Bound::ProvidersPaused) => Ok(Bound::ProvidersPaused),
        Ok(wire::Bound::ChargesPerInvoice) => Ok(Bound::ChargesPerInvoice),
        Ok(wire::Bound::Unspecified) | Err(_) => Err(OutOfBounds::new(
            "overloaded.bound",
            "one that this build knows",
        )),
    }
}

fn membership_to_wire(reason: MembershipReason) -> wire::MembershipReason {
    match reason {
        MembershipReason::IdUsed => wire::MembershipReason::IdUsed,
        MembershipReason::NotAMember => wire::MembershipReason::NotAMember,
        MembershipReason::WrongRole => wire::MembershipReason::WrongRole,
        MembershipReason::Lags => wire::MembershipReason::Lags,
        MembershipReason::EvenVoters => wire::MembershipReason::EvenVoters,
        MembershipReason::NoMajority => wire::MembershipReason::NoMajority,
        MembershipReason::InProgress => wire::MembershipReason::InProgress,
    }
}

fn membership_from_wire(reason: i32) -> Result<MembershipReason, OutOfBounds> {
    match wire::MembershipReason::try_from(reason) {
        Ok(wire::MembershipReason::IdUsed) => Ok(MembershipReason::IdUsed),
        Ok(wire::MembershipReason::NotAMember) => Ok(MembershipReason::NotAMember),
        Ok(wire::MembershipReason::WrongRole) => Ok(MembershipReason::WrongRole),
        Ok(wire::MembershipReason::Lags) => Ok(MembershipReason::Lags),
        Ok(wire::MembershipReason::EvenVoters) => Ok(MembershipReason::EvenVoters),
        Ok(wire::MembershipReason::NoMajority) => Ok(MembershipReason::NoMajority),
        Ok(wire::MembershipReason::InProgress) => Ok(MembershipReason::InProgress),
        Ok(wire::MembershipReason::Unspecified) | Err(_) => Err(OutOfBounds::new(
            "membership_refused.reason",
            "one that this build knows",
        )),
    }
}
