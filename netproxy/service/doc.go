// Package service makes Services work on a node: it turns Services and
// EndpointSlices into elements of the ruleset's maps.
//
// Plan is pure: it says what one service needs. Engine knows what the kernel
// holds and computes the smallest change. Controller feeds it from informers.
package service
