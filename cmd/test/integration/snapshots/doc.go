// Package snapshots tests scheduled snapshots with real servers and with a real
// S3 service, which is built for it from its source (versitygw, a gateway to
// folders). It needs bin/skiff; no containers run.
package snapshots
