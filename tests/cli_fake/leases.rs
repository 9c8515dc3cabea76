//! Leases as the script has them: granted, refused or lost by the invoice's id.

use super::*;

#[tonic::async_trait]
impl LeaseService for Node {
    async fn open_session(
        &self,
        request: Request<v1::OpenSessionRequest>,
    ) -> Answer<v1::OpenSessionResponse> {
        let v1::OpenSessionRequest {
            session_id,
            holder,
            ttl_ms,
        } = request.into_inner();
        let session = v1::Session {
            session_id,
            holder,
            ttl_ms,
            expires_in_ms: ttl_ms,
        };
        Ok(Response::new(v1::OpenSessionResponse {
            session: Some(session),
        }))
    }

    type KeepAliveStream = BoxStream<'static, Result<v1::KeepAliveResponse, Status>>;

    async fn keep_alive(
        &self,
        request: Request<Streaming<v1::KeepAliveRequest>>,
    ) -> Answer<Self::KeepAliveStream> {
        let end = self.script.sessions_end;
        let answers = request.into_inner().map(move |request| {
            let v1::KeepAliveRequest { tag, session_id } = request?;
            if end {
                let session = billing_core::SessionId::from_slice(&session_id).expect("16 bytes");
                return Err(refused(&Rejection::SessionEnded { session }));
            }
            let session = v1::Session {
                session_id,
                holder: "ana".into(),
                ttl_ms: 1_000,
                expires_in_ms: 1_000,
            };
            Ok(v1::KeepAliveResponse {
                tag,
                result: Some(v1::keep_alive_response::Result::Session(session)),
            })
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn close_session(
        &self,
        _: Request<v1::CloseSessionRequest>,
    ) -> Answer<v1::CloseSessionResponse> {
        Ok(Response::new(v1::CloseSessionResponse { was_open: true }))
    }

    async fn acquire_lease(
        &self,
        request: Request<v1::AcquireLeaseRequest>,
    ) -> Answer<v1::AcquireLeaseResponse> {
        let request = request.into_inner();
        provoked(&request.invoice_id)?;
        let holder = if request.holder.is_empty() {
            "ana@desk".to_owned()
        } else {
            request.holder
        };
        let lease = v1::Lease {
            holder,
            expires_in_ms: request.ttl_ms,
            ..lease(&request.invoice_id)
        };
        let doubtful = request.invoice_id == "inv-doubt";
        let open_attempt = doubtful.then(|| attempt(&request.invoice_id, v1::AttemptState::Open));
        Ok(Response::new(v1::AcquireLeaseResponse {
            lease: Some(lease),
            open_attempt: open_attempt.map(Box::new),
        }))
    }

    async fn release_lease(
        &self,
        request: Request<v1::ReleaseLeaseRequest>,
    ) -> Answer<v1::ReleaseLeaseResponse> {
        let request = request.into_inner();
        if request.invoice_id.is_empty() && request.seq > 0 {
            if self.script.deaf {
                return Err(outcome_unknown("the leader went away once more"));
            }
            return Ok(Response::new(v1::ReleaseLeaseResponse {
                was_current: true,
            }));
        }
        provoked(&request.invoice_id)?;
        Ok(Response::new(v1::ReleaseLeaseResponse {
            was_current: request.token == TOKEN,
        }))
    }

    async fn renew_lease(
        &self,
        request: Request<v1::RenewLeaseRequest>,
    ) -> Answer<v1::RenewLeaseResponse> {
        let request = request.into_inner();
        provoked(&request.invoice_id)?;
        let lease = v1::Lease {
            expires_in_ms: request.ttl_ms,
            ..lease(&request.invoice_id)
        };
        Ok(Response::new(v1::RenewLeaseResponse { lease: Some(lease) }))
    }

    async fn acquire_leases(
        &self,
        request: Request<v1::AcquireLeasesRequest>,
    ) -> Answer<v1::AcquireLeasesResponse> {
        use v1::acquire_leases_response::{Item, item::Result as Of};
        let items = request.into_inner().items.into_iter().map(|item| Item {
            result: Some(Of::Granted(v1::AcquireLeaseResponse {
                lease: Some(lease(&item.invoice_id)),
                open_attempt: None,
            })),
        });
        Ok(Response::new(v1::AcquireLeasesResponse {
            items: items.collect(),
        }))
    }
    async fn release_leases(
        &self,
        request: Request<v1::ReleaseLeasesRequest>,
    ) -> Answer<v1::ReleaseLeasesResponse> {
        use v1::release_leases_response::{Item, item::Result as Of};
        let items = request.into_inner().items.into_iter().map(|item| Item {
            result: Some(Of::Released(v1::ReleaseLeaseResponse {
                was_current: item.token == TOKEN,
            })),
        });
        Ok(Response::new(v1::ReleaseLeasesResponse {
            items: items.collect(),
        }))
    }
    async fn renew_leases(
        &self,
        _: Request<v1::RenewLeasesRequest>,
    ) -> Answer<v1::RenewLeasesResponse> {
        unscripted()
    }

    async fn get_lease(
        &self,
        request: Request<v1::GetLeaseRequest>,
    ) -> Answer<v1::GetLeaseResponse> {
        let id = request.into_inner().invoice_id;
        provoked(&id)?;
        let lease = (id != "inv-free").then(|| lease(&id));
        Ok(Response::new(v1::GetLeaseResponse {
            lease,
            applied_index: 4_711,
            watch_index: 4_712,
        }))
    }

    async fn list_leases(
        &self,
        request: Request<v1::ListLeasesRequest>,
    ) -> Answer<v1::ListLeasesResponse> {
        let request = request.into_inner();
        let all = match request.holder.as_str() {
            "nobody" => Vec::new(),
            "mallory" => vec![v1::Lease {
                holder: "mal\u{1b}[2Jlory".into(),
                ..lease("inv-9")
            }],
            _ => vec![
                lease("inv-7"),
                v1::Lease {
                    holder: "ben@backoffice".into(),
                    ..lease("inv-8-rather-long")
                },
            ],
        };
        // One row a page: the pages are the reader's business.
        let nth: usize = request.page_token.parse().unwrap_or(0);
        let next_page_token = if nth + 1 < all.len() {
            (nth + 1).to_string()
        } else {
            String::new()
        };
        let leases = all.into_iter().skip(nth).take(1).collect();
        Ok(Response::new(v1::ListLeasesResponse {
            leases,
            next_page_token,
            applied_index: 4_711,
            watch_index: 4_712,
        }))
    }

    type WatchLeasesStream = BoxStream<'static, Result<v1::WatchLeasesResponse, Status>>;

    async fn watch_leases(
        &self,
        request: Request<v1::WatchLeasesRequest>,
    ) -> Result<Response<Self::WatchLeasesStream>, Status> {
        use v1::watch_leases_response::Part;
        let v1::WatchLeasesRequest {
            invoice_id,
            from_index,
        } = request.into_inner();
        if (1..100).contains(&from_index) {
            return Err(refused(&Rejection::IndexPurged {
                requested: from_index,
                oldest: 100,
            }));
        }
        let next_index = if from_index == 0 { 4_712 } else { from_index };
        let event = |index, kind: v1::LeaseEventKind, id: &str, what: &str| v1::LeaseEvent {
            index,
            kind: kind.into(),
            invoice_id: id.to_owned(),
            token: TOKEN,
            holder: "ana@desk".into(),
            cluster_time_ms: index * 1_000,
            what: what.to_owned(),
        };
        let events = [
            event(4_713, v1::LeaseEventKind::Granted, "inv-7", "acquired"),
            event(
                4_720,
                v1::LeaseEventKind::Granted,
                "inv-8-rather-long",
                "acquired",
            ),
            event(4_731, v1::LeaseEventKind::Ended, "inv-7", "released"),
        ];
        let parts: Vec<Part> = std::iter::once(Part::Progress(v1::WatchProgress { next_index }))
            .chain(
                events
                    .into_iter()
                    .filter(|event| event.index >= next_index)
                    .filter(|event| invoice_id.is_empty() || event.invoice_id == invoice_id)
                    .map(Part::Event),
            )
            .collect();
        let parts = parts
            .into_iter()
            .map(|part| Ok(v1::WatchLeasesResponse { part: Some(part) }));
        // Nothing more happens, and the watch goes on.
        Ok(Response::new(
            futures::stream::iter(parts)
                .chain(futures::stream::pending())
                .boxed(),
        ))
    }

    type PipelineStream = BoxStream<'static, Result<v1::PipelineResponse, Status>>;

    async fn pipeline(
        &self,
        _: Request<Streaming<v1::PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        unscripted()
    }
}
