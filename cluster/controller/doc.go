// Package controller is the machinery that skiff's controllers share: a
// level-triggered work loop over informers, creation and deletion expectations,
// and ownership of pods through controller references. Each controller lives in
// a folder of its own below this one and imports no other controller.
//
// A controller is made by New(Config), which registers its event handlers and
// starts nothing, and driven by Run(ctx), which blocks until ctx ends and every
// goroutine of it has returned. It is made anew for every term of leadership,
// on an informer factory of that term, so nothing it remembers outlives a term.
//
// What all of them keep to:
//
//   - Level-triggered: a sync reads what is there now and takes the next step;
//     a missed or repeated event does no harm.
//   - Gather, then decide: what to do is computed by functions of plain objects,
//     tested from tables; only the caller talks to the API.
//   - Idle means idle: no periodic resync, and a status is written only if it
//     differs from the one that is stored.
//   - Cached objects are read-only. They are copied before they are changed.
package controller
