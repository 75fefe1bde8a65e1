// Package runtime runs pods on the local kernel. It is the client half of the
// container runtime: for each pod it spawns one small supervisor process
// (cmd/skiff-shim), tells it over a Unix socket which containers to run, and
// finds it again after skiff itself was restarted, upgraded or killed.
//
// The package is pure Go and does not link libcontainer. Everything that must
// outlive skiff is the shim's: namespaces, the containers, their standard
// streams and log files, exit records. Everything that needs knowledge of
// images, users or policy is decided here and handed to the shim as an OCI
// runtime specification.
//
// Limits: Linux only, root only, no user namespaces, cgroups v1 or v2 driven
// directly (no systemd driver).
package runtime
