// Package integration holds the tests that run the real binary on throw-away
// hosts, with real containers and kubectl. They need root and are behind the
// build tag integration; see make integration.
package integration
