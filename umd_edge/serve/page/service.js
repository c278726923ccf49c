// Calls to the service, with its token, and its errors.

export const access = { token: "" };

export class ServiceError extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.type = error.type;
    this.frames = error.frames;
  }
}

export async function call(method, path, body, kind) {
  const headers = access.token ? { authorization: `Bearer ${access.token}` } : {};
  if (kind) headers["content-type"] = kind;
  let response;
  try {
    response = await fetch(path, { method, headers, body, cache: "no-store" });
  } catch {
    throw new ServiceError(0, { type: "NoAnswer", message: "The service does not answer." });
  }
  if (response.ok) return response;
  let error = { type: "NoAnswer", message: `The service answered with status ${response.status}.` };
  try {
    error = (await response.json()).error;
  } catch { /* an answer that is not ours */ }
  throw new ServiceError(response.status, error);
}

export const post = (path, fields) => call("POST", path, JSON.stringify(fields), "application/json");
