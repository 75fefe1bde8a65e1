// Package clustertest lets whole clusters live through faults that follow from
// a seed, and checks what their clients and watchers saw.
//
// A cluster is consensus, fsm and the API's storage, each member with a data
// dir, on a network in memory and (with testing/synctest) on a clock of its own:
// hours of waiting take no time, a busy machine changes nothing, and a cluster in
// which everybody waits for everybody is noticed. Faults are partitions, also in
// one direction, firewalls, delayed and lost segments and broken connections, slow
// and hanging disks, wrong clocks, stops, crashes at any moment and at each step of
// writing, lost disks, and changes of leader and membership meanwhile.
//
// Checked are: operations are linearizable (porcupine; each key by itself, and
// all keys with lists at one revision), no acknowledged write is missing, nothing
// that was refused took effect, all members go through the same states at the
// same log index, a revision means the same on all, a term has one leader, each
// watcher saw every revision of its prefix once and in order, a restored snapshot is
// there as a whole at one revision or not at all, and after the last
// fault the cluster writes again and its members become equal.
//
// What goes wrong is counted where it has an effect, such as a segment that a cut
// link holds back or a write that meets a slow disk, and a run of many seeds in
// which something never did fails. Wrong clocks are met by certificates only: what
// else there is in these packages measures time and does not ask for the date, but
// for the expiry of keys, which is not used here.
//
// Limits: the order in which goroutines run is Go's, so that a seed fixes what
// goes wrong when, not every step of what follows. A crash keeps what was
// written but not synced: lost writes of a disk without power are not simulated.
package clustertest
