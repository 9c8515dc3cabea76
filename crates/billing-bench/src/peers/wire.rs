//! Decides how etcd is spoken to: generated stubs for the few calls that the comparison makes, with the same library as ours.

/// Keys, leases, status.
pub mod kv {
    #![allow(clippy::all, missing_docs)]
    tonic::include_proto!("etcdserverpb");
}

/// The lock service.
pub mod lock {
    #![allow(clippy::all, missing_docs)]
    tonic::include_proto!("v3lockpb");
}
