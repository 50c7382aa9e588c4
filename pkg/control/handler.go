package control

import (
	"encoding/json"
	"errors"
	"net/http"
)

// maxRequest bounds the body of a request, in bytes.
const maxRequest = 64 << 10

// Handler serves the API with the answers of b.
func Handler(b Backend) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+PathStatus, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, b.Status())
	})
	mux.HandleFunc("POST "+PathReload, func(w http.ResponseWriter, r *http.Request) {
		done := b.Reload(r.Context())
		answer(w, reloadCode(done), done)
	})
	mux.HandleFunc("GET "+PathExplain, func(w http.ResponseWriter, r *http.Request) {
		ask := r.URL.Query()
		explanation, err := b.Explain(Question{
			Client: ask.Get("client"), Server: ask.Get("server"),
			Target: ask.Get("target"),
		})
		if err != nil {
			Refuse(w, http.StatusBadRequest, err)
			return
		}
		answer(w, http.StatusOK, explanation)
	})
	mux.HandleFunc("POST "+PathTrace, func(w http.ResponseWriter, r *http.Request) {
		ask := r.URL.Query()
		trace, err := b.Trace(r.Context(),
			TraceQuestion{Mapping: ask.Get("mapping"), Target: ask.Get("target")})
		if err != nil {
			Refuse(w, http.StatusBadRequest, err)
			return
		}
		answer(w, http.StatusOK, trace)
	})
	mux.HandleFunc("GET "+PathLogLevel, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, b.LogLevel())
	})
	mux.HandleFunc("PUT "+PathLogLevel, func(w http.ResponseWriter, r *http.Request) {
		var level LogLevel
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body,
			maxRequest)).Decode(&level); err != nil {
			Refuse(w, http.StatusBadRequest,
				&Error{
					Message: "the body is not JSON: " + err.Error(),
					Hint:    `send {"level": "debug"}`,
				})
			return
		}
		if err := b.SetLogLevel(level); err != nil {
			Refuse(w, http.StatusBadRequest, err)
			return
		}
		answer(w, http.StatusOK, b.LogLevel())
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		Refuse(w, http.StatusNotFound, &Error{
			Message: "there is no " + r.Method + " " + r.URL.Path,
			Hint: "this daemon has GET " + PathStatus + ", POST " + PathReload + ", GET " +
				PathExplain + ", POST " + PathTrace + ", GET and PUT " + PathLogLevel,
		})
	})
	return mux
}

// reloadCode returns the HTTP status of a reload. curl --fail needs another than 200 if it has
// failed.
func reloadCode(r *Reload) int {
	switch {
	case r.OK:
		return http.StatusOK
	case r.Cause == CauseConfig:
		return http.StatusUnprocessableEntity
	case r.Cause == CauseRestart:
		return http.StatusConflict
	}
	return http.StatusInternalServerError
}

func answer(w http.ResponseWriter, code int, body any) {
	b, err := json.MarshalIndent(body, "", "  ")
	if err != nil {
		Refuse(w, http.StatusInternalServerError, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(b, '\n')) // it fails if the client is gone
}

// Refuse answers a request with an Error.
func Refuse(w http.ResponseWriter, code int, err error) {
	body, ok := errors.AsType[*Error](err)
	if !ok {
		body = &Error{Message: err.Error()}
	}
	answer(w, code, body)
}
