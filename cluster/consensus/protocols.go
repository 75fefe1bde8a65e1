package consensus

// Protocols are what the Raft port speaks, as ALPN names. A TLS configuration
// that is chosen anew at each handshake has to name them.
func Protocols() []string { return []string{protoRaft, protoRPC} }
