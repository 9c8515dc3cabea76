#!/usr/bin/env python3
"""A client of billingd without generated code: it learns every message by asking the server (gRPC reflection).

usage: python_reflection.py HOST:PORT [HOST:PORT ...]

For every node that is named: acquires a lease there, is refused at the next one (ABORTED, with the holder in the
error's details), releases it at the one after that, and acquires it again. Needs grpcio, grpcio-reflection, protobuf.
Exits 0 when all of that happened, 77 when a package is missing, 1 otherwise.
"""

import sys

try:
    import grpc
    from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )
except ImportError as missing:
    print(f"skipped: {missing}", file=sys.stderr)
    sys.exit(77)

DEADLINE_S = 20
TTL_MS = 60_000


class Node:
    """One node, and its services as it describes them itself."""

    def __init__(self, address):
        self.address = address
        self.channel = grpc.insecure_channel(address)
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = descriptor_pool.DescriptorPool(self.database)

    def call(self, service, method, **fields):
        """Calls service/method with a request of these fields; returns the answer and the response metadata."""
        described = self.pool.FindServiceByName(service).FindMethodByName(method)
        request = message_factory.GetMessageClass(described.input_type)(**fields)
        answer = message_factory.GetMessageClass(described.output_type)
        stub = self.channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        response, call = stub.with_call(request, timeout=DEADLINE_S, wait_for_ready=True)
        return response, dict(call.initial_metadata())

    def rejection(self, error):
        """The billing.v1.Rejection among the details of an error."""
        status = status_class()()
        for key, value in error.trailing_metadata():
            if key == "grpc-status-details-bin":
                status.ParseFromString(value)
        wanted = self.pool.FindMessageTypeByName("billing.v1.Rejection")
        for detail in status.details:
            if detail.type_url.endswith("/billing.v1.Rejection"):
                return message_factory.GetMessageClass(wanted).FromString(detail.value)
        raise AssertionError(f"no Rejection among the details of {error.details()}")


def status_class():
    """google.rpc.Status, which the protobuf package does not bring along."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(name="status.proto", package="google.rpc", syntax="proto3")
    file.dependency.append("google/protobuf/any.proto")
    message = file.message_type.add(name="Status")
    field = descriptor_pb2.FieldDescriptorProto
    message.field.add(name="code", number=1, type=field.TYPE_INT32, label=field.LABEL_OPTIONAL)
    message.field.add(name="message", number=2, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    message.field.add(
        name="details",
        number=3,
        type=field.TYPE_MESSAGE,
        type_name=".google.protobuf.Any",
        label=field.LABEL_REPEATED,
    )
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("google.rpc.Status"))


def story(here, there, elsewhere, invoice):
    """Acquire here, be refused there, release elsewhere, acquire again there."""
    leases = "billing.v1.LeaseService"
    granted, metadata = here.call(leases, "AcquireLease", invoice_id=invoice, holder="ana", ttl_ms=TTL_MS)
    assert granted.lease.token > 0 and granted.lease.holder == "ana", granted
    assert metadata.get("billing-leader-id"), f"no leader in the metadata: {metadata}"
    assert metadata.get("billing-leader-address"), f"no leader's address in the metadata: {metadata}"

    try:
        there.call(leases, "AcquireLease", invoice_id=invoice, holder="ben", ttl_ms=TTL_MS)
        raise AssertionError(f"{invoice} was granted twice")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.ABORTED, error
        held = there.rejection(error).held_by_other
        assert held.holder == "ana" and 0 < held.remaining_ms <= TTL_MS, held
        assert any(key == "billing-leader-id" for key, _ in list(error.initial_metadata()) + list(error.trailing_metadata()))

    released, _ = elsewhere.call(leases, "ReleaseLease", invoice_id=invoice, token=granted.lease.token)
    assert released.was_current, released
    again, _ = elsewhere.call(leases, "ReleaseLease", invoice_id=invoice, token=granted.lease.token)
    assert not again.was_current, again

    next_one, _ = there.call(leases, "AcquireLease", invoice_id=invoice, holder="ben", ttl_ms=TTL_MS)
    assert next_one.lease.token > granted.lease.token, (granted, next_one)
    there.call(leases, "ReleaseLease", invoice_id=invoice, token=next_one.lease.token)


def main(addresses):
    nodes = [Node(address) for address in addresses]
    for at, node in enumerate(nodes):
        services = node.database.get_services()
        assert "billing.v1.LeaseService" in services, services
        there = nodes[(at + 1) % len(nodes)]
        elsewhere = nodes[(at + 2) % len(nodes)]
        story(node, there, elsewhere, f"python-{at}")
        print(f"{node.address}: acquired; {there.address}: refused; {elsewhere.address}: released")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
