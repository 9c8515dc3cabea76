//! Decides what `grpc.health.v1` and reflection say. SERVING means: this node knows a leader and has caught up, so that a
//! balancer may send it anything. A node that is not serving still answers what it can.

use billing_proto::DESCRIPTORS;
use tonic::service::RoutesBuilder;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// What a client may name in a health check, beside the empty name for the whole node.
pub const SERVICES: [&str; 4] = [
    "billing.v1.LeaseService",
    "billing.v1.InvoiceService",
    "billing.v1.ChargeService",
    "billing.v1.ClusterService",
];
const HEALTH: &str = "grpc.health.v1.Health";

/// The node's word about itself.
#[derive(Clone)]
pub struct Health {
    reporter: HealthReporter,
}

impl Health {
    /// Adds health and both versions of reflection to `routes`. Not serving, until told otherwise.
    pub async fn add_to(
        routes: &mut RoutesBuilder,
    ) -> Result<Health, tonic_reflection::server::Error> {
        let (reporter, server) = tonic_health::server::health_reporter();
        let health = Health { reporter };
        health.say(false).await;
        routes.add_service(server);
        // Only what this listener serves is listed: the nodes' own service has another one.
        let described = || {
            SERVICES.iter().chain([&HEALTH]).fold(
                tonic_reflection::server::Builder::configure()
                    .register_encoded_file_descriptor_set(DESCRIPTORS)
                    .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET),
                |builder, name| builder.with_service_name(*name),
            )
        };
        routes.add_service(described().build_v1()?);
        routes.add_service(described().build_v1alpha()?);
        Ok(health)
    }

    /// Says whether the node and each of its services are serving.
    pub async fn say(&self, serving: bool) {
        let status = if serving {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        for name in SERVICES.iter().chain([&""]) {
            self.reporter.set_service_status(*name, status).await;
        }
    }
}
