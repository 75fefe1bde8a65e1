#!/bin/sh
# Writes zz_generated.openapi.go from the types of the groups in
# cluster/registry/scheme. Runs in this folder, by go generate.
set -e
boiler=$(mktemp)
trap 'rm -f "$boiler"' EXIT
: >"$boiler"
go tool openapi-gen --go-header-file "$boiler" \
  --output-dir . --output-pkg github.com/skiff-sh/skiff/cluster/api/openapi \
  --output-file zz_generated.openapi.go --report-filename /dev/null \
  k8s.io/api/core/v1 k8s.io/api/apps/v1 k8s.io/api/authentication/v1 k8s.io/api/authorization/v1 \
  k8s.io/api/autoscaling/v1 k8s.io/api/coordination/v1 k8s.io/api/discovery/v1 k8s.io/api/events/v1 \
  k8s.io/api/node/v1 k8s.io/api/policy/v1 k8s.io/api/rbac/v1 k8s.io/api/storage/v1 k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1 \
  k8s.io/metrics/pkg/apis/metrics/v1beta1 k8s.io/kube-aggregator/pkg/apis/apiregistration/v1 \
  k8s.io/apimachinery/pkg/apis/meta/v1 k8s.io/apimachinery/pkg/runtime k8s.io/apimachinery/pkg/version \
  k8s.io/apimachinery/pkg/api/resource k8s.io/apimachinery/pkg/util/intstr
