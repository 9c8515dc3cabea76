//! Compiles `proto/` in-process with protox: a fresh machine has no protoc.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const FILES: [&str; 5] = [
    "billing/v1/lease.proto",
    "billing/v1/invoice.proto",
    "billing/v1/charge.proto",
    "billing/v1/cluster.proto",
    "raft/v1/raft.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // For reflection: clients without generated code read the surface from the server itself.
    fs::write(out.join("descriptors.binpb"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".raft.v1")
        // An answer over the Pipeline is moved a dozen times between ledger and caller: only what nearly all of them are is
        // held in place, the leases.
        .boxed(".billing.v1.AcquireLeaseResponse.open_attempt")
        .boxed(".billing.v1.PipelineResponse.result.begin_charge")
        .boxed(".billing.v1.PipelineResponse.result.settle_charge")
        .boxed(".billing.v1.PipelineResponse.result.get_lease")
        .boxed(".billing.v1.PipelineResponse.result.get_invoice")
        .compile_fds(descriptors)?;
    Ok(())
}
