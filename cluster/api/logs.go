package api

import (
	"log"
	"log/slog"
)

// quietLog takes what net/http has to say of single connections, such as
// failed handshakes: noise unless somebody looks for it.
func quietLog(l *slog.Logger) *log.Logger {
	return slog.NewLogLogger(l.With("component", "http").Handler(), slog.LevelDebug)
}
