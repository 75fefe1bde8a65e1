// Package shimproto is the protocol between skiff and a pod's shim.
package shimproto
