// Package gossip says which members a cluster has, where they are, and which
// of them live. It is memberlist (SWIM with the Lifeguard extensions) with
// what a cluster that must not be wrong adds to it:
//
//   - A process, not a name, is what memberlist watches: its node names are
//     NAME/EPOCH with a new epoch at every New. A restart or a new address is
//     thus a new node that lives at once, and the end of the old one goes
//     unnoticed.
//   - A death that the others report is believed only after pings of our own
//     were in vain, and never in the first seconds after this process was
//     itself stopped or starved.
//   - Dead and left members stay listed until Forget.
//   - Dead members and seeds are asked now and then, at a rate that is the same
//     for a cluster of any size, so that partitions heal however long they last.
//   - Members of another cluster, and second owners of a name, are refused.
//
// What is not known here: members that died before this process started.
// Gossip is encrypted (AES-GCM) but not authenticated beyond the key: who has
// the key may say anything.
package gossip
