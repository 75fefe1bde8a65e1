// Package image keeps container images on the node's disk: it pulls them from
// registries, imports them from archives, unpacks their layers once, and
// mounts root file systems for containers by overlayfs.
//
// The store is a directory that several processes may use at the same time,
// so that `skiff image` works beside a running server. Layers are addressed by
// the digest of their uncompressed content and shared by all images.
//
// Limits: Linux, root; one platform (the machine's); the gzip, zstd and plain
// layer formats; no signatures.
package image
