// Package fleet is a large cluster in one process: real servers, and real
// agents with real gossip that reach the API over TLS, on addresses of
// 127.0.0.0/8, but with containers that exist in memory only. It shows what
// many nodes cost and whether anything leaks or is missed while they come and go.
//
// Churn is an hour of a busy cluster, compressed. With 100 nodes and four minutes
// (run -nodes 100 -duration 4m) it is about 270 agents and machines that go and
// come back, one of both every seven seconds of that hour, a leader that stops
// every five and a half minutes, and 2000 pods that start. Then all servers stop
// at once and start again. At the end each pod runs once, where the API says, and
// goroutines, files and memory are what they were.
//
// Limits: pods have no network and no processes; probes and exec do not work.
// Every member shares the process, so a busy machine slows them all at once: 100
// nodes in churn need about one core, half of it for gossip, and on fewer they
// hold each other for dead now and then, which is what the rest has to bear.
// Events are deleted before what is held is compared: they stay for an hour, not
// for a compressed one.
package fleet
