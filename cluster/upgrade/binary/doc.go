// Package binary changes the program that a member runs: it keeps verified
// programs (Store), puts one in place of the running one (Switch), starts it in
// place of this process, and goes back by itself when it is not healthy in time
// (Begin, Guard). An Executor carries out the orders of a roll-out with these.
//
// At any moment the file that skiff is started from is a whole program, the old
// or the new one, and what is known of the switch is on disk: whoever starts next
// goes on from there, see Begin.
//
// Limits: Linux; one file that is named the same before and after; the host has
// to let skiff write in that file's folder. What runs below skiff (shims,
// containers) is not touched; sessions of exec and port-forward end.
package binary
