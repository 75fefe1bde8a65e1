// Package fleet is a large cluster in one process: real servers, and real
// agents with real gossip that reach the API over TLS, on addresses of
// 127.0.0.0/8, but with containers that exist in memory only. It shows what
// many nodes cost and whether anything leaks or is missed while they come and go.
//
// Limits: pods have no network and no processes; probes and exec do not work.
// Every member shares the process, so a busy machine slows them all at once.
package fleet
