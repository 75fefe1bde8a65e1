// Package openapi describes every served type to clients (kubectl explain and
// diff, server-side apply). It is generated from the Go types of k8s.io/api;
// run `make generate` after a change of the served groups or of k8s.io/api.
package openapi

//go:generate sh generate.sh
